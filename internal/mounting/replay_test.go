package mounting

import (
	"bytes"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// guest is an artifact of a memory with a hole, and a small file.
func guest(seed byte) (*artifacttest.Artifact, []byte) {
	data := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{seed}).Read(data)
	clear(data[2<<20 : 4<<20])
	m, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 2 << 20}, {Offset: 4 << 20, Length: 4 << 20}}, int64(len(data)))
	if err != nil {
		panic(err)
	}
	return artifacttest.Snapshot([]artifacttest.File{
		{Name: "memory-ranges", Data: data, Map: m}, {Name: "state.json", Data: data[:5000]},
	}, artifacttest.Options{Piece: 256 << 10}), data
}

// wants is the set of some pages of a guest's memory, which are in two
// stages.
func wants(o *Opened, pages ...int64) *workingset.Set {
	f := o.Artifact.Files[0]
	var touches []workingset.Touch
	for i, p := range pages {
		touches = append(touches, workingset.Touch{Page: p, After: time.Duration(i%2) * 200 * time.Millisecond})
	}
	return workingset.FromTouches([]workingset.File{{Title: f.Name, Content: f.Key(), Size: f.Size()}}, touches)
}

// replayed replays a set and returns when it is ready.
func (p *place) replayed(o *Opened, m *fs.Mounted, set *workingset.Set, limit int64) *Replay {
	p.t.Helper()
	r := o.Replay(p.t.Context(), set, m, limit)
	select {
	case <-r.Done():
	case <-time.After(20 * time.Second):
		p.t.Fatal("the replay is not done in time")
	}
	return r
}

// TestReplay has the pages of a set come and be handed to the kernel, when it
// knows the file: whoever touches them causes no read. Pages of holes are handed
// over as well. What the artifact does not have is skipped.
func TestReplay(t *testing.T) {
	t.Parallel()
	artifact, data := guest(1)
	p := newPlace(t, registrytest.NewHandler(), artifact)
	o, m, end := p.mounted()
	defer end()
	pages := []int64{0, 1, 100, 511, 600, 1024, 1100, 2047}
	set := wants(o, pages...)
	set.Files = append(set.Files, workingset.File{Title: "absent", Size: 1 << 40, Extents: []workingset.Extent{{Page: 7, Pages: 1 << 20, Runs: 1}}})
	set.Files[0].Extents = append(set.Files[0].Extents, workingset.Extent{Page: 5000, Pages: 10, Runs: 1})
	r := p.replayed(o, m, set, 1<<20)
	if s := r.Stats(); s.Recorded != 7*4096 || s.Local != 7*4096 || s.Fetched != 7*4096 || s.Ready <= 0 || s.Stored != 0 {
		t.Errorf("before anybody has looked the file up: %+v", s)
	}
	name := filepath.Join(m.Dir(), "memory-ranges")
	reader := startMapper(t, name)
	defer reader.end()
	p.poll("pages are in the kernel", func() bool { return r.Stats().Stored == 7*4096 }, func() { t.Logf("%+v", r.Stats()) })
	p.poll("the hole's page is in the kernel", func() bool { return inMemory(t, name, 600) }, func() {})
	for _, page := range pages {
		if got := reader.ask("map", int(page*4096), 4096); !bytes.Equal(got, data[page*4096:][:4096]) {
			t.Errorf("page %d: wrong bytes", page)
		}
	}
	if n := o.Cache.Counts().Reads; n > 0 {
		t.Errorf("%d reads of pages that the kernel has", n)
	}
	if got, err := exec.Command("cat", name).Output(); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the whole file: %v", err)
	}
}

// TestReplayFromTheCache replays a set without its registry, and within its
// limit.
func TestReplayFromTheCache(t *testing.T) {
	t.Parallel()
	artifact, _ := guest(2)
	p := newPlace(t, registrytest.NewHandler(), artifact)
	o, m, end := p.mounted()
	pages := make([]int64, 200)
	for i := range pages {
		pages[i] = int64(1024 + 3*i)
	}
	set := wants(o, pages...)
	if s := p.replayed(o, m, set, 50*4096).Stats(); s.Recorded > 50*4096 || s.Recorded < 49*4096 || s.Local != s.Recorded {
		t.Errorf("within the limit: %+v", s)
	}
	if s := p.replayed(o, m, set, 0).Stats(); s.Recorded != 200*4096 || s.Local != s.Recorded {
		t.Errorf("by default: %+v", s)
	}
	ref := o.Reference.String()
	end()
	p.front.Inject(&registrytest.Fault{Status: 503})
	p.ref = ref
	o, m, end = p.mounted()
	defer end()
	if s := p.replayed(o, m, wants(o, pages...), 0).Stats(); s.Local != 200*4096 || s.Fetched != 0 {
		t.Errorf("without the registry: %+v", s)
	}
}

// TestReplayEnds ends with the mount while the registry does not answer.
func TestReplayEnds(t *testing.T) {
	t.Parallel()
	artifact, _ := guest(3)
	p := newPlace(t, registrytest.NewHandler(), artifact)
	o, m, end := p.mounted()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Method("GET", "/blobs/"), Delay: time.Hour})
	r := o.Replay(t.Context(), wants(o, 1, 2, 3, 1500), m, 0)
	p.poll("a request waits", func() bool { return len(p.front.Requests()) > 0 }, func() {})
	end()
	select {
	case <-r.Done():
	default:
		t.Error("the replay goes on")
	}
	if s := r.Stats(); s.Ready != 0 {
		t.Errorf("%+v", s)
	}
}

// inMemory reports whether a page of a file is in the page cache.
func inMemory(t *testing.T, name string, page int64) bool {
	t.Helper()
	// Not os.Open: it has the runtime ask whether the file can be polled, in a
	// call that holds one of its processors until this process has answered.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := unix.CachestatRange{Off: uint64(page * workingset.PageSize), Len: workingset.PageSize}
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(fd), &at, &stat, 0); err != nil {
		t.Skipf("cachestat: %v", err)
	}
	return stat.Cache > 0
}
