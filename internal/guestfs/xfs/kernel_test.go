package xfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// variants are options of mkfs.xfs, each with what it does to the format.
var variants = []struct{ name, options string }{
	{"default", ""},
	{"blocks of 1k", "-b size=1024"},
	{"inodes of 2k", "-i size=2048"},
	{"directories of 64k", "-n size=64k"},
	{"blocks of 1k, directories of 8k", "-b size=1024 -n size=8k"},
	{"large counters", "-i nrext64=1 -l size=17m"},
	{"no bigtime", "-m bigtime=0"},
	{"reverse map", "-m rmapbt=1,reflink=0"},
	{"many groups", "-d agcount=5"},
}

// more fills what Populate does not reach: attributes in trees and in blocks
// of their own, and files whose extents need a tree.
func more(t testing.TB, dir string) {
	t.Helper()
	name := filepath.Join(dir, "attributes in a tree")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for n := range 120 {
		value := make([]byte, n*10)
		for k := range value {
			value[k] = byte(n + k)
		}
		if err := unix.Setxattr(name, fmt.Sprintf("user.attribute-%d-%s", n, strings.Repeat("a", n)), value, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(name, "user.large", []byte(strings.Repeat("large", 12000)), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "deep tree"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := range int64(3000) {
		if _, err := f.WriteAt([]byte{byte(n), byte(n >> 8)}, n*9000); err != nil {
			t.Fatal(err)
		}
	}
}

// make1 makes a small file system, as xfstests do: mkfs.xfs refuses those of
// less than 300 MB to everybody else.
func make1(t testing.TB, options string) string {
	t.Helper()
	disk := guesttest.Sparse(t, 96<<20)
	if !strings.Contains(options, "-l ") {
		options += " -l size=10m"
	}
	guesttest.Run(t, "env", append(append([]string{"TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=x",
		"/usr/sbin/mkfs.xfs", "-q", "-L", "label"}, strings.Fields(options)...), disk)...)
	return disk
}

func TestAsTheKernel(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			disk := make1(t, v.options)
			dir, unmount := guesttest.Mount(t, disk, "xfs", "")
			guesttest.Populate(t, dir, guesttest.Contents{Many: 1000, Large: 1 << 20})
			more(t, dir)
			unmount()
			f, err := Open(guesttest.File(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			if d := f.Describe(); d.State != "clean" || d.Label != "label" {
				t.Errorf("%+v", d)
			}
			dir, _ = guesttest.Mount(t, disk, "xfs", "ro,noatime")
			if n := guesttest.Compare(t, f, dir, guesttest.Skip{}); n < 700 {
				t.Errorf("compared %d files", n)
			}
		})
	}
}

// TestLogState copies a file system while it is mounted, and after it was
// unmounted again and again, until the log has been gone round.
func TestLogState(t *testing.T) {
	t.Parallel()
	disk := make1(t, "")
	for round := range 4 {
		dir, unmount := guesttest.Mount(t, disk, "xfs", "")
		guesttest.Churn(t, filepath.Join(dir), int64(round), 300)
		guesttest.Run(t, "find", dir, "-mindepth", "1", "-delete")
		f, err := Open(guesttest.File(t, guesttest.Copy(t, disk)))
		if err != nil {
			t.Fatal(err)
		}
		if state := f.Describe().State; !strings.HasPrefix(state, "journal not replayed") {
			t.Errorf("round %d, mounted: %q", round, state)
		}
		unmount()
		counted := guesttest.Count(guesttest.File(t, disk))
		if f, err = Open(counted); err != nil {
			t.Fatal(err)
		}
		if state := f.Describe().State; state != "clean" {
			t.Errorf("round %d, unmounted: %q", round, state)
		}
		if counted.Trips > 8 {
			t.Errorf("%d round trips for the state:\n%s", counted.Trips, strings.Join(counted.Log, "\n"))
		}
	}
}

// TestFewReads lists a directory and reads a small file of it.
func TestFewReads(t *testing.T) {
	t.Parallel()
	disk := make1(t, "")
	dir, unmount := guesttest.Mount(t, disk, "xfs", "")
	guesttest.Populate(t, dir, guesttest.Contents{Many: 300, Large: 1 << 20})
	unmount()
	counted := guesttest.Count(guesttest.File(t, disk))
	f, err := Open(counted)
	if err != nil {
		t.Fatal(err)
	}
	many, err := f.Lookup(f.Root(), "many")
	if err != nil {
		t.Fatal(err)
	}
	var inodes []uint64
	if err := f.ReadDir(many, func(e vfs.DirEntry) error { inodes = append(inodes, e.Inode); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, n := range inodes {
		if _, err := f.Stat(n); err != nil {
			t.Fatal(err)
		}
	}
	if len(inodes) != 200 || counted.Trips > 12 || counted.Bytes > 2<<20 {
		t.Errorf("%d files, %d round trips, %d KiB:\n%s", len(inodes), counted.Trips, counted.Bytes>>10, strings.Join(counted.Log, "\n"))
	}
}

// TestVersion4 reads what mkfs.xfs itself makes of a tree: kernels no longer
// mount this version.
func TestVersion4(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"-m crc=0", "-m crc=0 -n ftype=0", "-m crc=0 -b size=1024 -n size=4k"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			tree := t.TempDir()
			var proto strings.Builder
			proto.WriteString("/\n0 0\nd--755 0 0\n")
			write := func(name string, size int) {
				b := make([]byte, size)
				for k := range b {
					b[k] = byte(k * size / 3)
				}
				if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&proto, "%s ---644 0 0 %s\n", filepath.Base(name), filepath.Join(tree, name))
			}
			mkdir := func(name string) {
				if err := os.Mkdir(filepath.Join(tree, name), 0o755); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&proto, "%s d--755 0 0\n", name)
			}
			write("small", 5)
			write("large", 300001)
			for _, n := range []int{10, 200, 1000} {
				name, target := fmt.Sprintf("link-%d", n), strings.Repeat("t", n)
				if err := os.Symlink(target, filepath.Join(tree, name)); err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&proto, "%s l--777 0 0 %s\n", name, target)
			}
			for dir, count := range map[string]int{"few": 5, "block": 60, "many": 600} {
				mkdir(dir)
				for n := range count {
					write(fmt.Sprintf("%s/name-of-a-file-%d", dir, n), n)
				}
				proto.WriteString("$\n")
			}
			proto.WriteString("$\n")
			file := filepath.Join(t.TempDir(), "proto")
			if err := os.WriteFile(file, []byte(proto.String()), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := Open(guesttest.File(t, make1(t, options+" -p "+file)))
			if err != nil {
				t.Fatal(err)
			}
			skip := guesttest.Skip{Blocks: true, Times: true, Inodes: true, DirSizes: true, Extents: true}
			if n := guesttest.Compare(t, f, tree, skip); n < 600 {
				t.Errorf("compared %d files", n)
			}
		})
	}
}
