package cache

import (
	"io"
	"os"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
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
	for _, with := range []error{unix.EIO, io.EOF} {
		for n, k := range kinds {
			for _, share := range []int{1, 2} {
				src := &fakeSource{}
				a := makeFile(t, newRand(t), src, k, 3<<20)
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
