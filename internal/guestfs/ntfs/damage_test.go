package ntfs

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

func filled(t testing.TB) string {
	t.Helper()
	disk := make1(t, "-s", "512")
	dir, unmount := mount(t, disk, "special_files=wsl,compression")
	guesttest.Populate(t, dir, guesttest.Contents{Many: 60, Large: 100000, Zeros: true, NoXattrs: true, NoDevices: true, Plain: true})
	compressed(t, dir)
	hardLinks(t, dir)
	unmount()
	return disk
}

func TestDamage(t *testing.T) {
	t.Parallel()
	guesttest.Damage(t, guesttest.File(t, filled(t)), read)
}

// TestConcurrently reads with several goroutines.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	f, err := Open(guesttest.File(t, filled(t)))
	if err != nil {
		t.Fatal(err)
	}
	guesttest.Concurrently(t, f)
}

// FuzzOpen changes a file system: bytes are laid over one of its used pages.
func FuzzOpen(f *testing.F) {
	disk := make1(f, "-s", "512")
	dir, unmount := mount(f, disk, "special_files=wsl")
	guesttest.Few(f, dir)
	unmount()
	base, err := os.ReadFile(disk)
	if err != nil {
		f.Fatal(err)
	}
	places := guesttest.Places(f, guesttest.Bytes(base), read)
	f.Add(uint32(100), []byte{1, 2, 3, 4})
	f.Add(uint32(50000), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		_ = read(guesttest.Over(guesttest.Bytes(base), places[int(at)%len(places)], change))
	})
}

// FuzzDecompress decompresses anything.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x03, 0xb0, 0x02, 'a', 0x00, 0x10})
	f.Fuzz(func(t *testing.T, in []byte) { _ = lznt1(make([]byte, 65536), in) })
}
