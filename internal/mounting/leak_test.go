package mounting

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	epochfs "github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// holding is what a process has, and what lies in a cache.
type holding struct {
	fds, routines, mounts int
	cache                 string // names of all files
}

func (p *place) holding() holding {
	p.t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		p.t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		p.t.Fatal(err)
	}
	var names []string
	_ = filepath.WalkDir(p.cfg.CacheDir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			p.t.Error(err)
		}
		names = append(names, name)
		return nil
	})
	return holding{len(fds), runtime.NumGoroutine(), strings.Count(string(table), p.front.Host), strings.Join(names, "\n")}
}

// comesBackTo waits until no more is held than was. The registry, in this
// process, has ended no sooner than the client what serves a connection.
func (p *place) comesBackTo(was holding) {
	p.t.Helper()
	var is holding
	p.poll("what was held is held", func() bool {
		is = p.holding()
		return is.fds <= was.fds && is.routines <= was.routines && is.mounts == was.mounts && is.cache == was.cache
	}, func() { p.t.Logf("there was %+v, and is %+v", was, is) })
}

func (p *place) poll(what string, so func() bool, tell func()) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			tell()
			p.t.Fatalf("not in time: %s", what)
		}
	}
}

// mounted opens the artifact and mounts it. Who calls end needs the mount
// no more.
func (p *place) mounted() (o *Opened, m *epochfs.Mounted, end func()) {
	p.t.Helper()
	tier.Long(p.t, "mounts")
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		p.t.Skip("no FUSE on this machine: ", err)
	} else {
		f.Close()
	}
	dir := p.cfg.CacheDir + "-mount"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	o, err := Open(p.t.Context(), p.ref, p.cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	m, err = o.Mount(dir, MountOptions{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Since: time.Now()})
	if err != nil {
		o.Close()
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = epochfs.Unmount(dir, true) }) // if the test failed
	return o, m, func() {
		p.t.Helper()
		var err error
		p.poll("the unmount", func() bool { err = m.Unmount(); return err == nil }, func() { p.t.Log(err) })
		m.Wait()
		if err := o.Close(); err != nil {
			p.t.Error(err)
		}
	}
}

// Fifty mounts that have ended have left nothing.
func TestMountsLeaveNothing(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	once := func() {
		_, m, end := p.mounted()
		if out, err := exec.Command("cat", filepath.Join(m.Dir(), files[1].Name)).Output(); err != nil || string(out) != string(files[1].Data) {
			t.Errorf("%d bytes, %v", len(out), err)
		}
		end()
	}
	for range 2 {
		once()
	}
	was := p.holding()
	for range 50 {
		once()
	}
	p.comesBackTo(was)
}

// A hundred readers who were killed while they waited have left nothing,
// neither while the mount goes on nor after it.
func TestCancelledReads(t *testing.T) {
	t.Parallel()
	const readers, step = 100, 200 << 10
	data := make([]byte, 24<<20) // what the kernel reads ahead for one is not another's
	artifacttest.Fill(data, 9)
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{Piece: 256 << 10})
	p := newPlace(t, registrytest.NewHandler(), a)
	p.cfg.ReadTimeout = 0
	_, _, end := p.mounted()
	end()
	before := p.holding()
	o, m, end := p.mounted()
	path := filepath.Join(m.Dir(), "memory-ranges")
	was := p.holding()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Delay: time.Hour})
	var all []*exec.Cmd
	for i := range readers {
		dd := exec.Command("dd", "if="+path, "of=/dev/null", "bs=4k", "count=1", fmt.Sprintf("skip=%d", i*step/4096), "status=none")
		if i%2 == 0 {
			dd.Args = append(dd.Args, "iflag=direct")
		}
		if err := dd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, dd)
	}
	p.poll("all wait", func() bool {
		u := m.Usage("memory-ranges")
		return u.Cached == readers/2 && u.Direct == readers/2 && o.Cache.Counts().Waiting >= readers/2
	}, func() { t.Logf("%+v, %+v", m.Usage("memory-ranges"), o.Cache.Counts()) })
	for _, dd := range all {
		_ = dd.Process.Kill()
	}
	for _, dd := range all {
		_ = dd.Wait() // it leaves without an answer
	}
	// What the kernel reads for its own pages it asks for until it gets it,
	// and its handle stays.
	tell := func() { t.Logf("%+v, %+v", m.Usage("memory-ranges"), o.Cache.Counts()) }
	p.poll("they have left", func() bool {
		return m.Usage("memory-ranges").Direct == 0 && o.Cache.Counts().Waiting <= readers/2
	}, tell)
	p.front.Clear()
	p.poll("nobody waits", func() bool {
		return m.Usage("memory-ranges") == epochfs.Usage{} && o.Cache.Counts().Waiting == 0
	}, tell)
	if out, err := exec.Command("cat", path).Output(); err != nil || !slices.Equal(out, data) {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	// go-fuse keeps some readers of requests.
	o.Registry.Close()
	p.poll("nothing is held for them", func() bool {
		is := p.holding()
		return is.fds <= was.fds && is.routines <= was.routines+runtime.GOMAXPROCS(0)
	}, func() { t.Logf("there was %+v, and is %+v", was, p.holding()) })
	end()
	p.comesBackTo(before)
}
