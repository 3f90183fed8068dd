package fat

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

var variants = []struct {
	name    string
	size    int64
	options []string
}{
	{"FAT12", 1 << 20, []string{"-F", "12", "-n", "CIDATA"}},
	{"FAT12 large clusters", 16 << 20, []string{"-F", "12", "-s", "16"}},
	{"FAT16", 20 << 20, []string{"-F", "16"}},
	{"FAT16 sectors of 2k", 64 << 20, []string{"-F", "16", "-S", "2048"}},
	{"FAT32", 40 << 20, []string{"-F", "32", "-s", "1"}},
	{"FAT32 large clusters", 600 << 20, []string{"-F", "32", "-s", "16"}},
}

// loses are what FAT does not have.
var loses = guesttest.Skip{Blocks: true, Links: true, Owner: true, Mode: true, Times: true, Inodes: true, Extents: true, Xattrs: true, DirSizes: true}

// TestAsMtools copies a tree by mtools, which know the format by themselves:
// a kernel without vfat is a normal one.
func TestAsMtools(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			disk := guesttest.Sparse(t, v.size)
			guesttest.Run(t, "mkfs.fat", append(v.options, disk)...)
			tree := makeTree(t, v.size > 2<<20)
			names, err := filepath.Glob(filepath.Join(tree, "*"))
			if err != nil {
				t.Fatal(err)
			}
			guesttest.Run(t, "mcopy", append(append([]string{"-smnQ", "-i", disk}, names...), "::")...)
			// The clusters of a third of the files are used again.
			guesttest.Run(t, "mdel", "-i", disk, "::many/*7.txt")
			if err := os.WriteFile(filepath.Join(tree, "pieces"), make([]byte, 30000), 0o644); err != nil {
				t.Fatal(err)
			}
			guesttest.Run(t, "mcopy", "-i", disk, filepath.Join(tree, "pieces"), "::")
			f, err := Open(guesttest.File(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			skip := loses
			skip.Name = func(path string) bool { gone, _ := filepath.Match("many/*7.txt", path); return gone }
			if n := guesttest.Compare(t, f, tree, skip); n < 30 {
				t.Errorf("compared %d files", n)
			}
			if label := f.Describe().Label; v.name == "FAT12" && label != "CIDATA" {
				t.Errorf("label %q", label)
			}
			entries(t, f)
		})
	}
}

func makeTree(t *testing.T, large bool) string {
	t.Helper()
	tree := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		for k := range b {
			b[k] = byte(k * size / 7)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{
		"EMPTY": 0, "lower.txt": 1, "UPPER.TXT": 511, "Mixed.Case": 512, "a name with spaces and more than thirteen letters": 5000,
		"umläut äöü.ß": 100, "smile ☺.x": 20, "dir/sub/deep": 700, "dir/x.tar.gz": 9, "no extension but.": 3,
	} {
		write(name, size)
	}
	for k := range 40 {
		write(filepath.Join("many", string(rune('a'+k%26))+"-longer-name-"+string(rune('0'+k%10))+".txt"), k*50)
	}
	if large {
		write("large", 700001)
	}
	if err := os.Chtimes(filepath.Join(tree, "lower.txt"), time.Time{}, time.Date(2011, 3, 4, 5, 6, 8, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	return tree
}

// entries looks at what a comparison of names and bytes leaves out.
func entries(t *testing.T, f *FS) {
	t.Helper()
	lower, err := f.Lookup(f.Root(), "LOWER.txt")
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat(lower)
	if err != nil || info.Type != vfs.Regular || !info.Modified.Equal(time.Date(2011, 3, 4, 5, 6, 8, 0, time.UTC)) {
		t.Errorf("%+v, %v", info, err)
	}
	alias, err := f.Lookup(f.Root(), "ANAMEW~1")
	if long, err2 := f.Lookup(f.Root(), "a name with spaces and more than thirteen letters"); alias != long || err != nil || err2 != nil {
		t.Errorf("short name: %d, %v; long name: %d, %v", alias, err, long, err2)
	}
}
