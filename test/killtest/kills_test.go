package killtest

import (
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/shaping"
	"github.com/cocoonstack/epochfs/test/tier"
)

// shaped puts a network before a registry and returns where it is now.
func shaped(t *testing.T, base string, opts shaping.Options) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	p, err := shaping.Start(u.Host, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p.Addr()
}

// disk makes an image of a file system with one file in it.
func disk(t *testing.T, inside artifacttest.File) artifacttest.File {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root", inside.Name), inside.Data, 0o644); err != nil {
		t.Fatal(err)
	}
	mkfs := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", "-d", filepath.Join(dir, "root"), image, "12M")
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return artifacttest.File{Name: "cow.raw", Data: data}
}

// mountLoop mounts a file of the mount.
func (w *world) mountLoop(name string) string {
	w.t.Helper()
	dir := w.path("loop")
	w.must(os.Mkdir(dir, 0o700))
	if out, err := exec.Command("mount", "-o", "ro,loop,noload", w.path("mnt", name), dir).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	w.t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

// faults breaks requests for blobs, one after the other, until the test
// ends.
func faults(front *registrytest.Front, rng *rand.Rand, stop <-chan struct{}) {
	blobs := registrytest.Method("GET", "/blobs/")
	for {
		select {
		case <-stop:
			front.Clear()
			return
		case <-time.After(time.Duration(20+rng.IntN(100)) * time.Millisecond):
		}
		fault := []*registrytest.Fault{
			{Status: 503}, {Status: 500}, {Drop: true}, {Cut: 1 + rng.Int64N(100_000)},
			{Delay: 100 * time.Millisecond}, {Stall: 1 + rng.Int64N(50_000)},
		}[rng.IntN(6)]
		fault.Match, fault.Times = blobs, 1
		front.Inject(fault)
	}
}

// TestHundredKills kills the worker at random moments, in make test less often,
// under readers of all kinds, with a cold cache, over a network that is not
// fast, from a registry that fails.
func TestHundredKills(t *testing.T) {
	rng := newRand(t)
	front := inMemory(t)
	inside := dense(rng, "inside", 3<<20)
	files := append(someFiles(rng, 32<<20)[:1], disk(t, inside), dense(rng, "state.json", 150_000))
	host := shaped(t, front.URL, shaping.Options{Delay: 5 * time.Millisecond, Total: 20 << 20})
	w := newWorld(t, host, artifacttest.Options{Piece: 256 << 10}, files...)
	w.must(os.WriteFile(w.path("flat", inside.Name), inside.Data, 0o600))
	w.mount()
	loop := w.mountLoop("cow.raw")
	w.read("whole", "state.json").finish(true) // to be sealed, and read in passthrough
	stop, stopped := make(chan struct{}), make(chan struct{})
	own := rand.New(rand.NewPCG(rng.Uint64(), 3))
	go func() {
		defer close(stopped)
		faults(front, own, stop)
	}()
	readers := []*reading{
		w.read("pread", "memory-ranges"), w.read("pread", "memory-ranges"), w.read("mmap", "memory-ranges"),
		w.read("direct", "memory-ranges"), w.read("whole", "state.json"), w.read("keep", "state.json"),
		w.read("mmap", "cow.raw"), w.readAt("loop", filepath.Join(loop, inside.Name), w.path("flat", inside.Name)),
	}
	enough := 100
	if tier.Shorter() > 1 {
		enough = 30
	}
	kills, spares := 0, 0
	for kills < enough {
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		serving := w.serving(0)
		if all := w.children(); rng.IntN(5) == 0 { // the spare too, or both at once
			for _, pid := range all {
				if pid != serving {
					w.signal(pid, unix.SIGKILL)
					spares++
				}
			}
		}
		w.signal(serving, unix.SIGKILL)
		kills++
	}
	close(stop)
	<-stopped
	var longest time.Duration
	for _, r := range readers {
		got := r.finish(true)
		t.Logf("%s: %d rounds, the longest %v", r.kind, got.Rounds, got.Longest)
		longest = max(longest, got.Longest)
	}
	if out, err := exec.Command("umount", loop).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.readAll()
	for _, f := range files {
		w.passes(f.Name)
	}
	w.unmount()
	t.Logf("%d kills, and %d of spares; the longest round took %v; %d requests for blobs", kills, spares, longest, front.Counts().Blobs)
}

// passes sees a file being opened in passthrough.
func (w *world) passes(name string) {
	w.t.Helper()
	w.poll(name+" is opened in passthrough", func() bool { // when it is sealed
		f, err := os.Open(w.path("mnt", name))
		w.must(err)
		defer f.Close()
		for _, s := range w.status().Files {
			if s.Name == name {
				return s.Mode == "passthrough"
			}
		}
		return false
	})
}

// mostKills bounds the kills of killWorkers: on a machine that is too busy for a
// worker to fetch anything in its time, a reader would wait forever.
const mostKills = 100

// killWorkers kills the worker every 100 ms, until the function it returns is
// called. That one returns the number of kills.
func (w *world) killWorkers() (stop func() int) {
	end, killed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-end:
				tick.Stop()
				killed <- n
				return
			case <-tick.C:
			}
			if m, err := w.kept(); n < mostKills && err == nil && m.Worker != 0 {
				_ = unix.Kill(m.Worker, unix.SIGKILL)
				n++
			}
		}
	}()
	return func() int {
		close(end)
		return <-killed
	}
}

// TestGuest has a process map all of the memory privately and touch it in
// random order, as a VM does, while the worker is killed every 100 ms and
// the registry is restarted twice.
func TestGuest(t *testing.T) {
	rng := newRand(t)
	debian := registrytest.Debian(t, registrytest.DebianOptions{})
	front := registrytest.Before(t, debian.URL)
	host := shaped(t, front.URL, shaping.Options{Delay: 2 * time.Millisecond, Total: 3 << 20})
	w := newWorld(t, host, artifacttest.Options{Piece: 256 << 10}, dense(rng, "memory-ranges", 8<<20))
	w.mount()
	guest := w.read("guest", "memory-ranges")
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		for range 2 {
			time.Sleep(700 * time.Millisecond)
			debian.Stop()
			time.Sleep(300 * time.Millisecond)
			debian.Start(t)
		}
	}()
	stop := w.killWorkers()
	got := guest.finish(false)
	n := stop()
	<-restarted
	t.Logf("%d kills in %v", n, got.Longest)
	if n < 10 {
		t.Errorf("only %d kills", n)
	}
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.unmount()
}
