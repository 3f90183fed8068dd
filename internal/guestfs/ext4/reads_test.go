package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// tree makes a disk of 2 GiB with a system's 20,000 files: 40 directories of
// 25 directories each, with 20 files in each of those, and a directory of
// 200.
func tree(t *testing.T, options ...string) (disk string) {
	t.Helper()
	disk = guesttest.Sparse(t, 2<<30)
	guesttest.Run(t, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4"}, options...), disk)...)
	dir, unmount := guesttest.Mount(t, disk, "ext4", "")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for a := range 40 {
		for b := range 25 {
			sub := filepath.Join(dir, fmt.Sprintf("usr-%d/share-%d", a, b))
			must(os.MkdirAll(sub, 0o755))
			for c := range 20 {
				must(os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%d", c)), []byte("x"), 0o644))
			}
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "etc/conf.d"), 0o755))
	for n := range 200 {
		must(os.WriteFile(filepath.Join(dir, "etc/conf.d", fmt.Sprintf("%d.conf", n)), make([]byte, 5000), 0o644))
	}
	unmount()
	return disk
}

func find(t *testing.T, f *FS, path string) uint64 {
	t.Helper()
	at := f.Root()
	for part := range strings.SplitSeq(path, "/") {
		var err error
		if at, err = f.Lookup(at, part); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

func list(t *testing.T, f *FS, dir uint64) (files int) {
	t.Helper()
	var entries []vfs.DirEntry
	if err := f.ReadDir(dir, func(e vfs.DirEntry) error { entries = append(entries, e); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := f.Stat(e.Inode)
		if err != nil {
			t.Fatal(err)
		}
		files++
		if info.Type == vfs.Directory {
			files += list(t, f, e.Inode)
		}
	}
	return files
}

// TestFewReads counts what a look costs: round trips, of which a hint for
// many ranges is one, and bytes of the pieces that are fetched for it.
func TestFewReads(t *testing.T) {
	t.Parallel()
	disk := tree(t)
	for name, c := range map[string]struct {
		look  func(t *testing.T, f *FS)
		trips int
		bytes int64
	}{
		"cat of 5 KB": {func(t *testing.T, f *FS) {
			if n, err := f.ReadAt(find(t, f, "etc/conf.d/77.conf"), make([]byte, 5000), 0); n != 5000 || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}, 12, 2e6},
		"ls -l of 200": {func(t *testing.T, f *FS) {
			if n := list(t, f, find(t, f, "etc/conf.d")); n != 200 {
				t.Errorf("%d files", n)
			}
		}, 12, 2e6},
		"ls -R of 20,000": {func(t *testing.T, f *FS) {
			if err := f.PrefetchTree(f.Root()); err != nil {
				t.Error(err)
			}
			if n := list(t, f, f.Root()); n < 20000 {
				t.Errorf("%d files", n)
			}
		}, 60, 30e6},
		"ls -R of a part": {func(t *testing.T, f *FS) {
			part := find(t, f, "usr-7")
			if err := f.PrefetchTree(part); err != nil {
				t.Error(err)
			}
			if n := list(t, f, part); n != 25*21 {
				t.Errorf("%d files", n)
			}
		}, 15, 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			counted := guesttest.Count(guesttest.File(t, disk))
			f, err := Open(counted)
			if err != nil {
				t.Fatal(err)
			}
			c.look(t, f)
			t.Logf("%d round trips with %d ranges, %d KiB, fetched %d KiB", counted.Trips, counted.Ranges, counted.Bytes>>10, counted.Fetched()>>10)
			if counted.Trips > c.trips || counted.Fetched() > c.bytes {
				t.Errorf("more than %d round trips or %d bytes:\n%s", c.trips, c.bytes, strings.Join(counted.Log, "\n"))
			}
		})
	}
}
