package cache

import (
	"math"
	"testing"
	"time"
)

// borrowing is a cache in which a file has copied one part from another, of
// which it lacks the rest.
func borrowing(t *testing.T, opts Options) (c, other *Cache, old artifact, h *File, flat []byte) {
	t.Helper()
	src := &fakeSource{}
	rng := newRand(t)
	dir := t.TempDir()
	old = makeFile(t, rng, src, kinds[2], 6<<20)
	other = openCache(t, dir, Options{})
	first := openFile(t, other, old.file, src)
	checkRead(t, first, old.flat, 0, len(old.flat))
	_ = first.Close()
	f := *old.file
	f.Map, flat = spread(t, rng, old.data)
	c = openCache(t, dir, opts)
	h = openFile(t, c, &f, src)
	src.reset()
	checkRead(t, h, flat, int(f.Map.Segments()[0].Offset), 1)
	if n, _ := src.reset(); n != 0 || h.Cached() != 1<<20 {
		t.Fatalf("%d requests, %d bytes kept: it was not copied", n, h.Cached())
	}
	return c, other, old, h, flat
}

// pruned removes all that is not in use, and reports whether old was.
func pruned(t *testing.T, c *Cache, old artifact) bool {
	t.Helper()
	p, err := c.Prune(t.Context(), PruneOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	return len(p.Files) == 1 && p.Files[0].Key == old.file.Key()
}

// TestIdleDonorIsReturned has a file copy from another and then be open
// without copying: the other can be evicted.
func TestIdleDonorIsReturned(t *testing.T) {
	t.Parallel()
	_, other, old, h, flat := borrowing(t, Options{peerIdle: time.Millisecond})
	eventually(t, "the donor can be removed", func() bool { return pruned(t, other, old) })
	checkRead(t, h, flat, 0, len(flat)) // the rest comes from the source
}

// TestDonorOfCompleteFileIsReturned has a file copy all of another: nothing
// of it is in use then.
func TestDonorOfCompleteFileIsReturned(t *testing.T) {
	t.Parallel()
	_, other, old, h, flat := borrowing(t, Options{peerIdle: time.Hour})
	if pruned(t, other, old) {
		t.Error("the donor was removed while more of it may be copied")
	}
	checkRead(t, h, flat, 0, len(flat))
	eventually(t, "the donor can be removed", func() bool { return pruned(t, other, old) })
}

// TestDonorMakesRoom has room needed that only the donor of an open file can
// make.
func TestDonorMakesRoom(t *testing.T) {
	t.Parallel()
	const quota = 20 << 20
	c, other, old, _, _ := borrowing(t, Options{Size: quota, peerIdle: time.Hour})
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 13<<20)
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if h.Cached() != int64(len(a.data)) {
		t.Errorf("%d bytes of %d were kept", h.Cached(), len(a.data))
	}
	inv, err := other.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range inv.Files {
		if f.Key == old.file.Key() {
			t.Errorf("the donor is still there, and in use: %v", f.InUse)
		}
	}
	if n := diskUse(t, c.dir.Name()); n > quota {
		t.Errorf("%d bytes on disk, %d allowed", n, quota)
	}
}

// TestDonorInUseStays closes no donor under a job that copies from it.
func TestDonorInUseStays(t *testing.T) {
	t.Parallel()
	c, other, old, h, _ := borrowing(t, Options{peerIdle: time.Nanosecond})
	e := h.entry
	d, back := e.peers.borrow(old.file.Key(), math.MaxInt64)
	if d == nil {
		t.Fatal("no donor")
	}
	again, backAgain := e.peers.borrow(old.file.Key(), math.MaxInt64)
	if again != d {
		t.Error("it was opened twice")
	}
	backAgain()
	e.peers.giveAllBack()
	c.givenBack(nil)
	if pruned(t, other, old) {
		t.Error("it was removed")
	}
	buf := make([]byte, 1<<20)
	if err := d.file.Load(0, buf); err != nil {
		t.Errorf("it cannot be read: %v", err)
	}
	back()
	eventually(t, "the donor can be removed", func() bool { return pruned(t, other, old) })
	if d, _ := e.peers.borrow(old.file.Key(), math.MaxInt64); d != nil {
		t.Error("one that is gone was opened")
	}
}
