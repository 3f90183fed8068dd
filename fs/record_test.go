package fs

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// recorder collects touches by page.
type recorder struct {
	mu    sync.Mutex
	pages map[int][]int64 // by file
	large int             // touches of more than a page
	last  time.Duration
}

func (r *recorder) touch(i int, off, n int64, after time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pages == nil {
		r.pages = map[int][]int64{}
	}
	if n > pageSize {
		r.large++
	}
	for page := off / pageSize; page*pageSize < off+n; page++ {
		if !slices.Contains(r.pages[i], page) {
			r.pages[i] = append(r.pages[i], page)
		}
	}
	r.last = max(r.last, after)
}

func (r *recorder) touched(i int) []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pages[i])
}

// A recording has the pages that were touched, in their order, and no others;
// readers have right bytes. When it has ended, files are opened in passthrough
// and nothing is told.
func TestRecording(t *testing.T) {
	needRoot(t)
	data := randomBytes(8<<20, 9)
	disk := diskFile(t, data)
	disk.ready.Store(true)
	r := &recorder{}
	m := mounted(t, []File{textFile("small", "x"), fileOf("f", int64(len(data)), disk)}, Options{Record: &Recording{Touch: r.touch}})
	if !m.Exact() {
		t.Skip("this kernel does not play along, or not in time")
	}
	path := filepath.Join(m.Dir(), "f")
	pages := []int64{5, 1900, 700, 6, 1024, 3}
	args := []string{"touch", path}
	for _, p := range pages {
		args = append(args, fmt.Sprint(p))
	}
	want := ""
	for _, p := range pages {
		want += fmt.Sprintf("%x\n", data[p*4096:p*4096+8])
	}
	if got := help(t, args...); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := r.touched(1); !slices.Equal(got, pages) {
		t.Errorf("touched are %v, want %v", got, pages)
	}
	if got := help(t, "odirect", path); got != shaLine(data) {
		t.Error("wrong bytes by O_DIRECT")
	}
	if got := help(t, "sha", path); got != shaLine(data) {
		t.Error("wrong bytes in order")
	}
	if r.large == 0 {
		t.Error("a sequential reader was declined all the way")
	}
	if u := m.Usage("f"); u.Passthrough > 0 {
		t.Error("opened in passthrough while recording")
	}
	m.eventually(t, "f", Usage{})
	m.EndRecording()
	holder := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Passthrough: 1})
	holder.finish(t)
	m.eventually(t, "f", Usage{})
	if n := len(r.touched(0)); n > 0 {
		t.Errorf("%d pages of a file that nobody has read", n)
	}
}

// A recording ends after its window.
func TestRecordingWindow(t *testing.T) {
	tree, err := newTree([]File{textFile("f", "x")}, Options{})
	check(t, err)
	r := &recorder{}
	tree.recorded = &recording{Recording: Recording{Touch: r.touch, Window: time.Minute}, base: time.Now().Add(-time.Hour), backing: true}
	tree.backing.Store(false)
	tree.touched(tree.nodes[0], 0, 1) // before the mount is ready
	tree.recorded.began.Store(int64(time.Hour - 30*time.Second))
	tree.touched(tree.nodes[0], 0, 1)
	if got := r.touched(0); len(got) != 1 || r.last < 30*time.Second || !tree.recorded.active() {
		t.Errorf("%v, the last after %v", got, r.last)
	}
	tree.recorded.began.Store(int64(time.Hour - 2*time.Minute))
	tree.touched(tree.nodes[0], 4096, 1)
	if got := r.touched(0); len(got) != 1 || tree.recorded.active() || !tree.backing.Load() {
		t.Errorf("after the window: %v", got)
	}
}
