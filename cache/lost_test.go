package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// badDisk fails reads of a stretch of a file.
type badDisk struct {
	from, to atomic.Int64
	with     error
	failed   atomic.Int64
}

func (d *badDisk) ReadAt(f *os.File, p []byte, off int64) (int, error) {
	if off < d.to.Load() && off+int64(len(p)) > d.from.Load() {
		d.failed.Add(1)
		return 0, d.with
	}
	return f.ReadAt(p, off)
}

// TestDiskDoesNotGiveBack has a disk that fails reads of what it took, of a
// file that is sealed and one that is not: readers get their bytes all the
// same, from the registry, and the rest from the disk.
func TestDiskDoesNotGiveBack(t *testing.T) {
	for n, k := range kinds {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, k, 3<<20)
		for _, with := range []error{unix.EIO, io.EOF} {
			for _, share := range []int{1, 2} {
				src.reset()
				disk := &badDisk{with: with}
				h := openFile(t, openCache(t, t.TempDir(), Options{readDisk: disk.ReadAt}), a.file, src)
				checkRead(t, h, a.flat, 0, len(a.flat)/share)
				if share == 1 {
					eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
				}
				_, all := src.reset()
				seg := a.file.Map.Segments()[0]
				disk.from.Store(seg.Offset)
				disk.to.Store(seg.Offset + 1)
				checkRead(t, h, a.flat, 0, len(a.flat)/share)
				checkRead(t, h, a.flat, int(seg.Offset), 1)
				if disk.failed.Load() == 0 {
					t.Errorf("%v, kind %d: the disk was not asked", with, n)
				}
				if _, again := src.reset(); again == 0 || again > all {
					t.Errorf("%v, kind %d: %d bytes were fetched again of %d", with, n, again, all)
				}
				if _, ok := h.Backing(); ok {
					t.Errorf("%v, kind %d: the kernel may read what the disk does not give back", with, n)
				}
				if h.Complete() {
					t.Errorf("%v, kind %d: what the disk does not give back counts as present", with, n)
				}
			}
		}
	}
}

// TestPartNotGivenBack has a part that is to be passed on fail on disk: it
// is not there any more for who asks again.
func TestPartNotGivenBack(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 3<<20)
	disk := &badDisk{with: unix.EIO}
	h := openFile(t, openCache(t, t.TempDir(), Options{readDisk: disk.ReadAt}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	seg := a.file.Map.Segments()[0]
	disk.from.Store(seg.Offset)
	disk.to.Store(seg.Offset + 1)
	k := h.Filler()
	if _, err := io.ReadAll(k.Part(0)); !errors.Is(err, unix.EIO) {
		t.Errorf("error %v", err)
	}
	if k.Part(0) != nil || k.Here(0, 0, k.Grain(0)) {
		t.Error("what the disk does not give back counts as present")
	}
	if !k.Here(0, k.Grain(0), k.Grain(0)) {
		t.Error("what it does give back does not")
	}
}

// TestDiskThatForgets has a disk fail to take what was written, after which
// the kernel forgets it too: readers get their bytes all the same, and
// nobody else is given what is not there.
func TestDiskThatForgets(t *testing.T) {
	for n, kind := range kinds {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kind, 3<<20)
		dir := t.TempDir()
		h := openFile(t, openCache(t, dir, Options{}), a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
		h.entry.state.Unseal()
		h.entry.state.SetUnsafe()
		for run := range a.file.Map.Payload(1<<20, 100_000) {
			if _, err := h.entry.disk.Data.WriteAt(make([]byte, run.Length), run.Offset); err != nil {
				t.Fatal(err)
			}
		}
		k := h.Filler()
		if k.Part(0) != nil || k.Load(0, 0, make([]byte, k.Grain(0))) {
			t.Errorf("kind %d: what the disk has is passed on unseen", n)
		}
		if ok, err := h.CopyTo(context.Background(), nil, nil); ok || err != nil {
			t.Errorf("kind %d: it is copied: %v, %v", n, ok, err)
		}
		if l := openLocal(t, dir, a.file, src); l.Part(0) != nil || l.Cached() != 0 {
			t.Errorf("kind %d: another process is given it", n)
		}
		_, all := src.reset()
		checkRead(t, h, a.flat, 0, len(a.flat))
		checkRead(t, h, a.flat, 12_345, len(a.flat)/2)
		if _, again := src.reset(); again == 0 || again > all {
			t.Errorf("kind %d: %d bytes were fetched again of %d", n, again, all)
		}
	}
}

// TestSealLargeHole seals a file whose hole is much larger than what can
// be gone through.
func TestSealLargeHole(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20)
	f := *a.file
	var err error
	if f.Map, err = sparse.New([]sparse.Segment{{Offset: 0, Length: 1 << 20}}, sparse.MaxSize); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "epochfs-hole-") // others do not take such a file
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := openFile(t, openCache(t, dir, Options{}), &f, src)
	checkRead(t, h, a.data, 0, len(a.data))
	eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
}
