package fs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// changing is a content of one byte over and over, which changes.
type changing struct{ value atomic.Int32 }

func newChanging(b byte) *changing {
	c := &changing{}
	c.value.Store(int32(b))
	return c
}

func (c *changing) ReadAt(_ context.Context, p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = byte(c.value.Load())
	}
	return len(p), nil
}
func (c *changing) Backing() (*os.File, bool) { return nil, false }
func (c *changing) Cached() int64             { return 0 }

// shows reports the first byte of a file's page, as a reader sees it.
func shows(t *testing.T, m *Mounted, name string, page int) byte {
	t.Helper()
	out := help(t, "readat", filepath.Join(m.Dir(), name), fmt.Sprint(page*4096), "1")
	var b byte
	_, err := fmt.Sscanf(out, "%02x", &b)
	check(t, err)
	return b
}

// The pages that a range overlaps are dropped, and no others.
func TestForgetRange(t *testing.T) {
	const pages = 16
	log := &testLog{t: t}
	c := newChanging('a')
	m := mounted(t, []File{fileOf("f", pages*4096, c), textFile("unknown", "x"), textFile("empty", "")},
		Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	help(t, "sha", filepath.Join(m.Dir(), "f"))
	c.value.Store('b')
	m.Forget("f", pages*4096, 0) // beyond the end
	m.Forget("f", 4096+100, 4096)
	for _, name := range []string{"unknown", "empty", "absent"} {
		m.Forget(name, 0, 0)
	}
	eventually(t, "the range is dropped", func() bool { return shows(t, m, "f", 1) == 'b' && shows(t, m, "f", 2) == 'b' })
	for _, page := range []int{0, 3, pages - 1} {
		if got := shows(t, m, "f", page); got != 'a' {
			t.Errorf("page %d shows %q", page, got)
		}
	}
	m.Forget("f", 0, 0)
	for page := range pages {
		eventually(t, "the file is dropped", func() bool { return shows(t, m, "f", page) == 'b' })
	}
	m.Forget("f", 0, 0) // after the end of the mount, too
	check(t, m.Unmount())
	m.Wait()
	m.Forget("f", 0, 0)
	if n := log.count("may keep pages"); n > 0 {
		t.Errorf("%d warnings", n)
	}
}

// stuck returns the threads of this process that wait for a page in a drop.
func stuck(t *testing.T) []string { return stuckIn(t, unix.SYS_WRITE) }

// stuckIn returns those that wait for a page in a write to the FUSE device by
// the given system call.
func stuckIn(t *testing.T, write int) (tids []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	check(t, err)
	for _, task := range tasks {
		stat, _ := os.ReadFile(task + "/stat")
		call, _ := os.ReadFile(task + "/syscall")
		if strings.Contains(string(stat), ") D ") && strings.HasPrefix(string(call), fmt.Sprint(write, " ")) {
			tids = append(tids, filepath.Base(task))
		}
	}
	return tids
}

// A notification that waits for a locked page holds up nothing else: not who
// asked for it, not others about other files and other pages, no request, and
// not the end of the mount.
func TestForgetOfLockedPages(t *testing.T) {
	needRoot(t)
	locked, free := newBlocked(randomBytes(8<<20, 1)), newChanging('a')
	m := mounted(t, []File{fileOf("locked", 8<<20, locked), fileOf("free", 4096, free)}, Options{})
	help(t, "sha", filepath.Join(m.Dir(), "free"))
	free.value.Store('b')
	var readers []*child
	for i := range mostOfFile + 2 {
		readers = append(readers, &child{Cmd: helperCmd("readat", filepath.Join(m.Dir(), "locked"), fmt.Sprint(i<<20), "4096")})
		check(t, readers[i].Start())
	}
	eventually(t, "all pages are locked", func() bool { return locked.entered.Load() >= int64(len(readers)) })
	began := time.Now()
	for range 100 {
		for i := range readers {
			m.Forget("locked", int64(i)<<20, 4096)
		}
	}
	if took := time.Since(began); took > 20*time.Second { // a page stays locked for longer
		t.Errorf("the callers waited %v", took)
	}
	eventually(t, "notifications wait", func() bool { return len(stuck(t)) == mostOfFile })
	for _, tid := range stuck(t) {
		links, err := filepath.Glob("/proc/self/task/" + tid + "/fd/*")
		check(t, err)
		links = slices.DeleteFunc(links, func(link string) bool {
			to, _ := os.Readlink(link)
			return len(filepath.Base(link)) == 1 && filepath.Base(link) <= "2" || to == fuseDevice || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "pipe:")
		})
		if tid == fmt.Sprint(os.Getpid()) || len(links) > 0 {
			t.Errorf("thread %s has open: %v", tid, links)
		}
	}
	m.Forget("free", 0, 0)
	eventually(t, "the other file's page is dropped", func() bool { return shows(t, m, "free", 0) == 'b' })
	m.Breathe()
	check(t, Unmount(m.Dir(), true))
	close(locked.open)
	for _, r := range readers {
		check(t, r.Wait())
	}
	m.Wait()
	eventually(t, "nothing waits", func() bool { return len(stuck(t)) == 0 })
}

// A request that the kernel sends again is answered, however often it comes.
func TestResend(t *testing.T) {
	content := newBlocked(randomBytes(4096, 1))
	m := mounted(t, []File{fileOf("f", 4096, content)}, Options{})
	if _, ok := m.Kept(); !ok {
		t.Skip("this kernel cannot send requests again")
	}
	reader := &child{Cmd: helperCmd("sha", filepath.Join(m.Dir(), "f"))}
	var out strings.Builder
	reader.Stdout = &out
	check(t, reader.Start())
	for n := range int64(3) {
		eventually(t, "the request comes", func() bool { return content.entered.Load() == n+1 })
		check(t, m.PredecessorGone())
	}
	close(content.open)
	check(t, reader.Wait())
	if out.String() != shaLine(content.bytesContent) {
		t.Error("wrong bytes")
	}
	m.eventually(t, "f", Usage{})
}

// What was dropped is dropped again when the process before is gone: a thread
// of it may have stored wrong bytes since.
func TestDropAgain(t *testing.T) {
	wrong, right := newChanging('a'), newChanging('b')
	m := mounted(t, []File{fileOf("f", 16*4096, right)}, Options{})
	help(t, "sha", filepath.Join(m.Dir(), "f"))
	m.Forget("f", 4096, 4096)
	eventually(t, "the page is dropped", func() bool {
		m.notify.mu.Lock()
		defer m.notify.mu.Unlock()
		return len(m.notify.waiting) == 0 && len(m.notify.sending) == 0
	})
	for _, page := range []int64{1, 2} {
		_, err := m.Store("f", page*4096, 4096, func(p []byte, off int64) bool {
			_, err := wrong.ReadAt(context.Background(), p, off)
			return err == nil
		})
		check(t, err)
	}
	if got := shows(t, m, "f", 1); got != 'a' {
		t.Fatalf("it shows %q", got)
	}
	check(t, m.PredecessorGone())
	eventually(t, "the page is dropped again", func() bool { return shows(t, m, "f", 1) == 'b' })
	if got := shows(t, m, "f", 2); got != 'a' {
		t.Errorf("another page shows %q", got)
	}
}

// What waits to be sent is bounded.
func TestRangesThatWait(t *testing.T) {
	n := newNotifier(-1, func(uint64, error) {})
	n.running = mostNotifying // none begins
	for i := range int64(mostRanges) {
		n.drop(2, pageRange{i * 8192, i*8192 + 4096})
		n.drop(2, pageRange{i * 8192, i*8192 + 4096})
	}
	n.drop(3, pageRange{4096, 0})
	n.drop(3, pageRange{8192, 12288})
	if len(n.waiting[2]) != mostRanges || len(n.waiting[3]) != 1 || len(n.queue) != 2 {
		t.Fatalf("%d and %d ranges of %d files wait", len(n.waiting[2]), len(n.waiting[3]), len(n.queue))
	}
	n.drop(2, pageRange{1 << 30, 2 << 30})
	if got := n.waiting[2]; !slices.Equal(got, []pageRange{wholeFile}) {
		t.Errorf("%v wait", got)
	}
	for _, want := range []uint64{2, 3} {
		if ino, _, ok := n.take(); !ok || ino != want {
			t.Errorf("inode %d, %v", ino, ok)
		}
	}
	n.drop(2, pageRange{0, 4096})
	n.running++ // for the one that is to find nothing
	if ino, r, ok := n.take(); ok {
		t.Errorf("%v of %d is sent while the same page is", r, ino)
	}
	n.sent(2, wholeFile)
	if ino, r, ok := n.take(); !ok || ino != 2 || r != (pageRange{0, 4096}) {
		t.Errorf("%v of %d, %v", r, ino, ok)
	}
	n.close()
	n.drop(4, wholeFile)
	if len(n.queue) > 0 || len(n.waiting) > 0 {
		t.Error("something waits after the end")
	}
}

func TestPagesOf(t *testing.T) {
	for _, c := range []struct {
		off, n, size int64
		want         pageRange
		none         bool
	}{
		{0, 0, 10000, wholeFile, false},
		{0, 10000, 10000, wholeFile, false},
		{4096, 0, 10000, pageRange{4096, 0}, false},
		{5000, 1, 10000, pageRange{4096, 8192}, false},
		{4095, 2, 10000, pageRange{0, 8192}, false},
		{0, 1 << 62, 10000, wholeFile, false},
		{9000, 1 << 62, 1 << 62, pageRange{8192, 0}, false},
		{-5, 10, 10000, pageRange{0, 4096}, false},
		{10000, 0, 10000, pageRange{}, true},
		{1 << 62, 1 << 62, 10000, pageRange{}, true},
		{0, 0, 0, pageRange{}, true},
	} {
		if got, ok := pagesOf(c.off, c.n, c.size); ok == c.none || got != c.want {
			t.Errorf("%d bytes at %d of %d: %v, %v", c.n, c.off, c.size, got, ok)
		}
	}
}
