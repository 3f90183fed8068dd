package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/test/tier"
)

// diskUse adds up the blocks below a directory.
func diskUse(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

// TestQuotaHolds reads far more than the cache may keep, from two caches
// on one directory at a time, and looks at the disk all along.
func TestQuotaHolds(t *testing.T) {
	const quota = 16 << 20
	rng := newRand(t)
	src := &fakeSource{}
	dir := t.TempDir()
	caches := []*Cache{openCache(t, dir, Options{Size: quota}), openCache(t, dir, Options{Size: quota})}
	var sets [2][]artifact
	for i := range sets {
		for j := range 6 {
			sets[i] = append(sets[i], makeFile(t, rng, src, kinds[j%4], 3<<20+i<<10))
		}
	}
	var wg sync.WaitGroup
	for i, c := range caches {
		files := sets[i]
		wg.Go(func() {
			for _, a := range files {
				h, err := c.File(a.file, src)
				if err != nil {
					t.Error(err)
					return
				}
				checkRead(t, h, a.flat, 0, len(a.flat))
				if n := diskUse(t, dir); n > quota {
					t.Errorf("%d bytes on disk, %d allowed", n, quota)
				}
				_ = h.Close()
			}
		})
	}
	wg.Wait()
}

// TestLeastRecentlyUsedGoes fills a cache with three files, of which the
// first is in use, and needs room for a fourth.
func TestLeastRecentlyUsedGoes(t *testing.T) {
	rng := newRand(t)
	src := &fakeSource{}
	dir := t.TempDir()
	c := openCache(t, dir, Options{Size: 14 << 20})
	var files []artifact
	var handles []*File
	for i := range 4 {
		a := makeFile(t, rng, src, kinds[0], 3<<20)
		h := openFile(t, c, a.file, src)
		files, handles = append(files, a), append(handles, h)
		if i == 3 {
			break
		}
		checkRead(t, h, a.flat, 0, len(a.flat))
		if i > 0 {
			_ = h.Close()
			old := time.Now().Add(time.Duration(i-10) * time.Hour)
			for _, suffix := range []string{".state", ".data", ".meta"} {
				if err := os.Chtimes(filepath.Join(dir, disk.Files, a.file.Key()+suffix), old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	checkRead(t, handles[3], files[3].flat, 0, len(files[3].flat))
	for i, want := range []bool{true, false, true, true} {
		_, err := os.Stat(filepath.Join(dir, disk.Files, files[i].file.Key()+".state"))
		if got := err == nil; got != want {
			t.Errorf("file %d there: %v, want %v (%v)", i, got, want, err)
		}
	}
	src.reset()
	checkRead(t, handles[0], files[0].flat, 0, len(files[0].flat))
	if n, _ := src.reset(); n != 0 {
		t.Errorf("the file in use was fetched again: %d requests", n)
	}
}

// TestFullDisk has a file system smaller than the file: readers are
// served, and what is fetched ahead of them is not fetched twice.
func TestFullDisk(t *testing.T) {
	tier.Long(t, "mounts")
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, size := range []int64{0, 1 << 30} { // as much as is free; more than there is
		for _, k := range kinds[:4] {
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, k, 10<<20)
			c := openCache(t, dir, Options{Size: size})
			h := openFile(t, c, a.file, src)
			for off := 0; off < len(a.flat); off += 1 << 20 {
				checkRead(t, h, a.flat, off, 1<<20)
			}
			if _, fetched := src.reset(); fetched > a.file.StoredSize()*21/20 {
				t.Errorf("%s: fetched %d bytes of %d", k.name, fetched, a.file.StoredSize())
			}
			_ = h.Close()
			_ = c.Close()
		}
	}
	// Not even room for a state file.
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 64<<10))
	}
	_ = fill.Close()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 3<<20)
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if h.Cached() != 0 {
		t.Errorf("%d bytes kept on a full disk", h.Cached())
	}
}

// TestLeftovers finds files of a process that died while it removed or
// made one.
func TestLeftovers(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 1<<20)
	for _, gone := range []string{".state", ".data", ".meta", ".state .meta", ".data .meta"} {
		dir := t.TempDir()
		c := openCache(t, dir, Options{})
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		_ = h.Close()
		_ = c.Close()
		for suffix := range strings.FieldsSeq(gone) {
			if err := os.Remove(filepath.Join(dir, disk.Files, a.file.Key()+suffix)); err != nil {
				t.Fatal(err)
			}
		}
		h = openFile(t, openCache(t, dir, Options{}), a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
	}
}
