package killtest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/shaping"
)

// setFile writes the working set of pages of a file and returns the flags with
// which a mount replays it.
func setFile(t *testing.T, title string, size int64, pages []int64) []string {
	t.Helper()
	var touches []workingset.Touch
	for i, p := range pages {
		touches = append(touches, workingset.Touch{Page: p, After: time.Duration(i) * time.Millisecond})
	}
	set := workingset.FromTouches([]workingset.File{{Title: title, Content: "another's", Size: size}}, touches)
	text, err := workingset.Encode(set)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "set")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--working-set", name, "--prefetch-limit", "1GiB"}
}

// somePages are pages of a file, in random order.
func somePages(rng *rand.Rand, size int64, n int) (pages []int64) {
	for _, p := range rng.Perm(int(size / 4096))[:n] {
		pages = append(pages, int64(p))
	}
	return pages
}

// TestGuestUnderReplay has guests touch all of a memory in random order, with
// huge pages and without, while half of it is replayed and the worker is killed
// every 100 ms: each worker goes on with the replay, and every page is right.
func TestGuestUnderReplay(t *testing.T) {
	rng := newRand(t)
	const size = 16 << 20
	front := inMemory(t)
	host := shaped(t, front.URL, shaping.Options{Delay: 2 * time.Millisecond, Total: 24 << 20})
	w := newWorld(t, host, artifacttest.Options{Piece: 256 << 10}, dense(rng, "memory-ranges", size))
	w.flags = setFile(t, "memory-ranges", size, somePages(rng, size, 2048))
	w.mount()
	guests := []*reading{w.read("huge", "memory-ranges"), w.read("guest", "memory-ranges")}
	stop := w.killWorkers()
	for _, g := range guests {
		t.Logf("%s: %v", g.kind, g.finish(false).Longest)
	}
	n := stop()
	if n < 3 {
		t.Errorf("only %d kills", n)
	}
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.readAll()
	w.unmount()
	t.Logf("%d kills", n)
}

// A worker that is killed while it waits in the kernel for a locked page, with
// a replay under way, is followed by another at once.
func TestKilledInNotificationUnderReplay(t *testing.T) {
	t.Parallel()
	const size = 33<<20 + 512 + 4096
	pages := somePages(newRand(t), size, 2000)
	l := lockPage(t, setFile(t, "disk.qcow2", size, pages)...)
	l.signal(l.worker, unix.SIGKILL)
	l.serving(l.worker)
	l.readersServed()
}
