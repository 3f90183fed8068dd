package ext4

import (
	"os"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

func read(img vfs.Image) error {
	f, err := Open(img)
	if err != nil {
		return err
	}
	return guesttest.Walk(f)
}

// TestDamage reads damaged images: with extents and an index, with blocks of
// pointers, with inline data, and with a journal to be replayed.
func TestDamage(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"ext4":   {"-t", "ext4", "-b", "1024"},
		"ext3":   {"-t", "ext3", "-b", "1024"},
		"inline": {"-t", "ext4", "-O", "inline_data", "-I", "512"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := guesttest.Sparse(t, 32<<20)
			guesttest.Run(t, "mke2fs", append(append([]string{"-q", "-F"}, options...), disk)...)
			dir, unmount := guesttest.Mount(t, disk, "ext4", "")
			guesttest.Populate(t, dir, guesttest.Contents{Many: 60, Large: 100000, Zeros: true})
			unmount()
			guesttest.Damage(t, guesttest.File(t, disk), read)
		})
	}
	t.Run("journal", func(t *testing.T) {
		t.Parallel()
		img := guesttest.File(t, copyWhileMounted(t, "-t ext4 -b 1024 -J size=4", "", 3, 60))
		guesttest.DamageAt(t, img, journalPlaces(t, img), read)
	})
}

// journalPlaces are the bytes that are not zero in the journal's own blocks.
func journalPlaces(t *testing.T, img vfs.Image) (places []int64) {
	t.Helper()
	f, err := Open(img)
	if err != nil {
		t.Fatal(err)
	}
	i, err := f.existing(uint64(f.journalInode), vfs.Regular)
	if err != nil {
		t.Fatal(err)
	}
	for n := int64(0); n < f.blocksIn(i); n++ {
		r, err := f.mapped(i, n, n+1)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(r.physical) * f.blockSize
		b, err := f.pages.Bytes(at, int(f.blockSize))
		if err != nil {
			t.Fatal(err)
		}
		if be.Uint32(b) != journalMagic {
			continue
		}
		for k, c := range b {
			if c != 0 {
				places = append(places, at+int64(k))
			}
		}
	}
	return places
}

// TestConcurrently reads with several goroutines.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	f, err := Open(guesttest.File(t, copyWhileMounted(t, "-t ext4 -b 1024 -J size=4", "", 5, 60)))
	if err != nil {
		t.Fatal(err)
	}
	guesttest.Concurrently(t, f)
}

// FuzzOpen changes a small file system: bytes are laid over it from an offset
// on.
func FuzzOpen(f *testing.F) {
	disk := guesttest.Sparse(f, 1<<20)
	guesttest.Run(f, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-O", "inline_data,^has_journal", disk)
	guesttest.Run(f, "debugfs", "-w", "-R", "write /etc/passwd file", disk)
	guesttest.Run(f, "debugfs", "-w", "-R", "symlink link target", disk)
	base, err := os.ReadFile(disk)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(1024), []byte{1, 2, 3, 4})
	f.Add(uint32(2048), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		img := append(guesttest.Bytes(nil), base...)
		copy(img[int(at)%len(img):], change)
		_ = read(img)
	})
}
