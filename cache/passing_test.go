package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pagesOf returns how many bytes of the cache's data files the kernel has in
// memory.
func pagesOf(t *testing.T, dir string) (n int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "files", "*.data"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		var stat unix.Cachestat_t
		err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0)
		f.Close()
		if errors.Is(err, unix.ENOSYS) {
			t.Skip("this kernel does not tell")
		}
		if err != nil {
			t.Fatal(err)
		}
		n += int64(stat.Cache) * int64(os.Getpagesize())
	}
	return n
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

// TestTaken reads a file as a mount does, which keeps pages of its own.
func TestTaken(t *testing.T) {
	t.Parallel()
	const size, step = 24 << 20, 1 << 20
	for _, test := range []struct {
		name  string
		step  int64
		taken bool // by the mount's page cache
		ahead bool // all was prefetched before
		drops bool
	}{
		{"in order", step, true, false, true},
		{"past the page cache", step, false, false, false},
		{"in small reads", 32 << 10, true, false, false},
		{"prefetched", step, true, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, kinds[0], size)
			dir := t.TempDir()
			if keepsNoPages(t, dir) {
				t.Skip("a file system in memory has no other place")
			}
			f := openFile(t, openCache(t, dir, Options{}), a.file, src)
			if test.ahead {
				f.Prefetch()
				eventually(t, "all is there", f.Complete)
			}
			for again := range 2 {
				got := make([]byte, 0, len(a.flat))
				buf := make([]byte, test.step)
				for off := int64(0); off < int64(len(a.flat)); off += test.step {
					n := min(test.step, int64(len(a.flat))-off)
					if _, err := f.ReadAt(context.Background(), buf[:n], off); err != nil {
						t.Fatal(err)
					}
					got = append(got, buf[:n]...)
					if test.taken && again == 0 {
						f.Taken(off, n)
					}
				}
				if !bytes.Equal(got, a.flat) {
					t.Fatal("wrong bytes")
				}
				if again == 0 && test.drops {
					eventually(t, "the pages are gone", func() bool { return pagesOf(t, dir) < size/2 })
				}
			}
			if !test.drops && pagesOf(t, dir) < size/2 {
				t.Errorf("of %d bytes %d are in memory", size, pagesOf(t, dir))
			}
			eventually(t, "all is verified", f.Verified)
		})
	}
}
