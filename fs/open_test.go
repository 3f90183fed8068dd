package fs

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func (m *Mounted) eventually(t *testing.T, name string, want Usage) {
	t.Helper()
	eventually(t, "the right number of open handles", func() bool { return m.Usage(name) == want })
}

// Passthrough is chosen when the file is ready and nobody reads it
// otherwise; a mapping whose descriptor is closed still does.
func TestPassthroughWaitsForCachedReaders(t *testing.T) {
	needRoot(t)
	data := randomBytes(3<<20+17, 1)
	disk := diskFile(t, data)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	for _, how := range []string{"plain", "mmap"} {
		disk.ready.Store(false)
		early := start(t, helperCmd("hold", path, how))
		m.eventually(t, "f", Usage{Cached: 1})
		disk.ready.Store(true)
		second := start(t, helperCmd("hold", path, "plain"))
		m.eventually(t, "f", Usage{Cached: 2})
		if got := help(t, "sha", path); got != shaLine(data) {
			t.Error("wrong bytes in cached mode")
		}
		early.finish(t)
		second.finish(t)
		m.eventually(t, "f", Usage{})

		late := start(t, helperCmd("hold", path, "plain"))
		m.eventually(t, "f", Usage{Passthrough: 1})
		disk.ready.Store(false)
		odirect := start(t, helperCmd("hold", path, "direct"))
		m.eventually(t, "f", Usage{Passthrough: 2})
		reads := disk.reads.Load()
		for _, read := range []string{"sha", "mmap", "odirect"} {
			if got := help(t, read, path); got != shaLine(data) {
				t.Errorf("%s: wrong bytes in passthrough", read)
			}
		}
		if got := help(t, "seekat", path, "data@5", "hole@5"); got != "5\n3145745\n" {
			t.Errorf("seek in passthrough: %q", got)
		}
		if n := disk.reads.Load() - reads; n != 0 {
			t.Errorf("%d reads reached the worker", n)
		}
		late.finish(t)
		odirect.finish(t)
		m.eventually(t, "f", Usage{})
	}
}

// A mapping made in passthrough is one of the backing file itself. It
// holds no handle open, so any mode may follow.
func TestPassthroughMapping(t *testing.T) {
	needRoot(t)
	data := randomBytes(1<<20, 1)
	disk := diskFile(t, data)
	disk.ready.Store(true)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	mapping := start(t, helperCmd("hold", path, "mmap"))
	m.eventually(t, "f", Usage{})
	disk.ready.Store(false)
	plain := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Cached: 1})
	if got := help(t, "sha", path); got != shaLine(data) {
		t.Error("wrong bytes")
	}
	plain.finish(t)
	mapping.finish(t)
}

// O_DIRECT handles go with cached ones, and keep passthrough waiting.
func TestDirectHandles(t *testing.T) {
	needRoot(t)
	data := randomBytes(2<<20+5, 2)
	disk := diskFile(t, data)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	odirect := start(t, helperCmd("hold", path, "direct"))
	m.eventually(t, "f", Usage{Direct: 1})
	plain := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Direct: 1, Cached: 1})
	if got := help(t, "odirect", path); got != shaLine(data) {
		t.Error("wrong bytes")
	}
	plain.finish(t)
	m.eventually(t, "f", Usage{Direct: 1})
	disk.ready.Store(true)
	again := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Direct: 1, Cached: 1})
	for _, read := range []string{"sha", "mmap", "odirect"} {
		if got := help(t, read, path); got != shaLine(data) {
			t.Errorf("%s: wrong bytes", read)
		}
	}
	odirect.finish(t)
	again.finish(t)
	m.eventually(t, "f", Usage{})
	fast := start(t, helperCmd("hold", path, "direct"))
	m.eventually(t, "f", Usage{Passthrough: 1})
	fast.finish(t)
}

// No open fails for another's mode, in whatever order the kernel sees the
// answers to those that come at the same time.
func TestOpensThatCross(t *testing.T) {
	needRoot(t)
	opens, length := "300000", "8s"
	if n := os.Getenv("EPOCHFS_TEST_OPENS"); n != "" {
		opens, length = n, "5m"
	}
	data := randomBytes(4096, 1)
	disk := diskFile(t, data)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{})
	done := make(chan struct{})
	var flipping sync.WaitGroup
	flipping.Go(func() {
		for ready := true; ; ready = !ready {
			select {
			case <-done:
				return
			case <-time.After(200 * time.Microsecond):
				disk.ready.Store(ready)
			}
		}
	})
	got := help(t, "cross", filepath.Join(m.Dir(), "f"), opens, length)
	close(done)
	flipping.Wait()
	t.Log(got)
	if !strings.HasPrefix(got, "failed map[] of ") {
		t.Error("an open failed")
	}
}

func TestNoBacking(t *testing.T) {
	data := randomBytes(1<<20, 3)
	disk := diskFile(t, data)
	disk.ready.Store(true)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{NoBacking: true})
	path := filepath.Join(m.Dir(), "f")
	held := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Cached: 1})
	if got := help(t, "sha", path); got != shaLine(data) {
		t.Error("wrong bytes")
	}
	held.finish(t)
}

// A backing file on an overlay is one level too deep for the kernel. Its
// file is then read through the worker, and others are not.
func TestBackingFileOnOverlay(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	base := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		check(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	merged := filepath.Join(base, "merged")
	err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+base+"/lower,upperdir="+base+"/upper,workdir="+base+"/work")
	if err != nil {
		t.Skip("no overlay: ", err)
	}
	data := randomBytes(1<<20, 4)
	check(t, os.WriteFile(filepath.Join(merged, "f"), data, 0o600))
	f, err := os.Open(filepath.Join(merged, "f"))
	check(t, err)
	t.Cleanup(func() { f.Close(); check(t, unix.Unmount(merged, 0)) })
	deep := &fileContent{file: f}
	deep.ready.Store(true)
	flat := diskFile(t, data)
	flat.ready.Store(true)
	m := mounted(t, []File{fileOf("deep", int64(len(data)), deep), fileOf("flat", int64(len(data)), flat)}, Options{})
	for name, want := range map[string]Usage{"deep": {Cached: 1}, "flat": {Passthrough: 1}} {
		path := filepath.Join(m.Dir(), name)
		held := start(t, helperCmd("hold", path, "plain"))
		m.eventually(t, name, want)
		if got := help(t, "sha", path); got != shaLine(data) {
			t.Errorf("%s: wrong bytes", name)
		}
		held.finish(t)
	}
}

// A disk of the snapshot can be mounted from where it lies.
func TestLoopMount(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	src, img := t.TempDir(), filepath.Join(t.TempDir(), "img")
	want := randomBytes(3<<20, 5)
	check(t, os.WriteFile(filepath.Join(src, "inside"), want, 0o644))
	run(t, "mkfs.ext4", "-q", "-d", src, img, "16M")
	data, err := os.ReadFile(img)
	check(t, err)
	disk := diskFile(t, data)
	m := mounted(t, []File{fileOf("cow.raw", int64(len(data)), disk)}, Options{})
	for _, ready := range []bool{false, true} {
		disk.ready.Store(ready)
		usage := Usage{Cached: 1}
		if ready {
			usage = Usage{Passthrough: 1}
		}
		guest := emptyDir(t)
		run(t, "mount", "-o", "ro,loop,noload", filepath.Join(m.Dir(), "cow.raw"), guest)
		m.eventually(t, "cow.raw", usage)
		if got := help(t, "sha", filepath.Join(guest, "inside")); got != shaLine(want) {
			t.Errorf("ready %v: wrong bytes", ready)
		}
		run(t, "umount", guest)
		m.eventually(t, "cow.raw", Usage{})
	}
}

func TestManyOpens(t *testing.T) {
	data := randomBytes(4096, 6)
	disk := diskFile(t, data)
	slow, fast := diskFile(t, data), disk
	fast.ready.Store(true)
	m := mounted(t, []File{fileOf("slow", 4096, slow), fileOf("fast", 4096, fast)}, Options{})
	path := func(name string) string { return filepath.Join(m.Dir(), name) }
	many := func() {
		help(t, "many", path("slow"), "1000")
		help(t, "many", path("fast"), "1000")
		m.eventually(t, "slow", Usage{})
		m.eventually(t, "fast", Usage{})
	}
	many()
	fds, routines := openFDs(t), runtime.NumGoroutine()
	many()
	if n := openFDs(t); n > fds {
		t.Errorf("%d descriptors became %d", fds, n)
	}
	// go-fuse keeps some readers of its own, as many as it has needed.
	if n := runtime.NumGoroutine(); n > routines+runtime.GOMAXPROCS(0) {
		t.Errorf("%d goroutines became %d", routines, n)
	}
	if n := m.tree.handles.free(); n != maxHandles {
		t.Errorf("%d slots are free of %d", n, maxHandles)
	}
	if n := len(m.tree.handles.opens); n != 0 {
		t.Errorf("%d handles are left", n)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(all)
}

func TestXattrs(t *testing.T) {
	plain := bytesFile("plain", []byte("0123456789"))
	plain.MediaType = "application/vnd.cocoonstack.vm.memory"
	plain.Digest = "sha256:" + strings.Repeat("ab", 32)
	m := mounted(t, []File{plain, bytesFile("split", []byte("012345"))}, Options{})
	want := "user.epochfs.digest=" + plain.Digest + " short=ERANGE\n" +
		"user.epochfs.mediatype=" + plain.MediaType + " short=ERANGE\n" +
		"user.epochfs.data=10 short=ERANGE\n" +
		"user.epochfs.cached=10 short=ERANGE\n" +
		"list short=ERANGE\nabsent=ENODATA\n"
	if got := help(t, "xattr", filepath.Join(m.Dir(), "plain")); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// A size of 1 less than 1 asks for the size: no error.
	want = "user.epochfs.data=6 short=%s\nuser.epochfs.cached=6 short=%s\nlist short=ERANGE\nabsent=ENODATA\n"
	want = strings.ReplaceAll(want, "%s", "none")
	if got := help(t, "xattr", filepath.Join(m.Dir(), "split")); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := help(t, "xattr", m.Dir()); got != "absent=ENODATA\n" {
		t.Errorf("the directory: %s", got)
	}
}
