package xfs

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

func filled(t testing.TB, options string) string {
	t.Helper()
	disk := make1(t, options)
	dir, unmount := guesttest.Mount(t, disk, "xfs", "")
	guesttest.Populate(t, dir, guesttest.Contents{Many: 60, Large: 100000, Zeros: true})
	more(t, dir)
	unmount()
	return disk
}

func TestDamage(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"-b size=1024", "-n size=8k"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			guesttest.Damage(t, guesttest.File(t, filled(t, options)), read)
		})
	}
}

// TestConcurrently reads with several goroutines.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	f, err := Open(guesttest.File(t, filled(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	guesttest.Concurrently(t, f)
}

// FuzzOpen changes a file system: bytes are laid over one of its used pages.
func FuzzOpen(f *testing.F) {
	disk := make1(f, "")
	dir, unmount := guesttest.Mount(f, disk, "xfs", "")
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
