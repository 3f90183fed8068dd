package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// pagesOf returns how many of the first n bytes of the cache's only data file the
// kernel has in memory.
func pagesOf(t *testing.T, dir string, n int64) int64 {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "files", "*.data"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	f, err := os.Open(names[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: uint64(n)}, &stat, 0)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel does not tell")
	}
	if err != nil {
		t.Fatal(err)
	}
	return int64(stat.Cache) * int64(os.Getpagesize())
}

// keepsNoPages reports whether a file system is one in memory.
func keepsNoPages(t *testing.T, dir string) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.TMPFS_MAGIC
}

// toDrop returns how many stretches of a file wait for their pages to be dropped.
// Whether the kernel has the others in memory is its own affair.
func toDrop(f *File) int {
	p := &f.entry.passing
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.fresh) + len(p.aged)
}

// TestTaken reads a file as a mount does, which keeps pages of its own.
func TestTaken(t *testing.T) {
	t.Parallel()
	const size, part, step = 24 << 20, 4 << 20, 1 << 20
	for _, test := range []struct {
		name  string
		to    int64 // what is read, from the start
		step  int64
		taken bool // by the mount's page cache
		ahead bool // all was prefetched before
		drops bool
	}{
		{"a part", part, step, true, false, true},
		{"past the page cache", size, step, false, false, false},
		{"in small reads", size, 32 << 10, true, false, false},
		{"prefetched", size, step, true, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, kinds[1], size) // which is not read again to be hashed
			dir := t.TempDir()
			if keepsNoPages(t, dir) {
				t.Skip("a file system in memory has no other place")
			}
			f := openFile(t, openCache(t, dir, Options{passed: time.Millisecond}), a.file, src)
			if test.ahead {
				f.Prefetch()
				eventually(t, "all is there", f.Complete)
			}
			to := min(test.to, int64(len(a.flat)))
			read := func(each func(off, n int64)) {
				t.Helper()
				got := make([]byte, to)
				for off := int64(0); off < to; off += test.step {
					n := min(test.step, to-off)
					if _, err := f.ReadAt(context.Background(), got[off:off+n], off); err != nil {
						t.Fatal(err)
					}
					each(off, n)
				}
				if !bytes.Equal(got, a.flat[:to]) {
					t.Fatal("wrong bytes")
				}
			}
			read(func(off, n int64) {
				if test.taken {
					f.Taken(off, n)
				}
			})
			if to == part {
				if f.Complete() {
					t.Fatal("all was fetched")
				}
			} else {
				eventually(t, "all is verified", f.Verified)
			}
			if test.drops {
				eventually(t, "the pages are gone", func() bool { return pagesOf(t, dir, to) <= to/4 })
			} else if n := toDrop(f); n > 0 {
				t.Errorf("the pages of %d stretches are to be dropped", n)
			}
			read(func(int64, int64) {})
		})
	}
}

// TestUntaken has the mount drop its pages before those of the cached file went.
func TestUntaken(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 4<<20)
	f := openFile(t, openCache(t, t.TempDir(), Options{passed: time.Hour}), a.file, src)
	if _, err := f.ReadAt(context.Background(), make([]byte, len(a.flat)), 0); err != nil {
		t.Fatal(err)
	}
	f.Taken(0, int64(len(a.flat)))
	if toDrop(f) == 0 {
		t.Fatal("nothing is to be dropped")
	}
	f.Untaken()
	if toDrop(f) > 0 {
		t.Error("something is to be dropped that nobody else has")
	}
}

// TestPagesOfSealedStay drops the pages of a sealed file, which another mount may
// read in passthrough mode.
func TestPagesOfSealedStay(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 4<<20)
	dir := t.TempDir()
	f := openFile(t, openCache(t, dir, Options{}), a.file, src)
	checkRead(t, f, a.flat, 0, len(a.flat))
	eventually(t, "it is sealed", func() bool { _, ok := f.Backing(); return ok })
	all := int64(len(a.flat))
	checkRead(t, f, a.flat, 0, len(a.flat))
	if err := f.entry.disk.Pages.Drop(disk.Stretch{N: all}, t.Context().Err); err != nil {
		t.Fatal(err)
	}
	if pagesOf(t, dir, all) == 0 {
		t.Error("its pages were dropped")
	}
}

// TestTakenBeforeItIsWritten takes pieces that a disk does not get until later, because
// it is slow or because it is not known whether there is room: their pages will be
// dropped like those of others.
func TestTakenBeforeItIsWritten(t *testing.T) {
	t.Parallel()
	for _, slow := range []bool{true, false} {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kinds[1], 4<<20)
		stuck := newStuckDisk("measure")
		t.Cleanup(stuck.release)
		opts := Options{passed: time.Hour}
		if !slow {
			opts.before, opts.grace = stuck.before, time.Millisecond
		}
		c := openCache(t, t.TempDir(), opts)
		f := openFile(t, c, a.file, src)
		c.pace.slow(slow)
		checkRead(t, f, a.flat, 0, len(a.flat))
		if f.Cached() > 0 {
			t.Fatal("the disk took something")
		}
		f.Taken(0, int64(len(a.flat)))
		if toDrop(f) == 0 {
			t.Errorf("slow %t: no pages are to be dropped", slow)
		}
		stuck.release()
	}
}
