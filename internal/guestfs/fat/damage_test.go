package fat

import (
	"os"
	"path/filepath"
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

func filled(t testing.TB, size int64, options ...string) string {
	t.Helper()
	disk := guesttest.Sparse(t, size)
	guesttest.Run(t, "mkfs.fat", append(options, disk)...)
	file := filepath.Join(t.TempDir(), "a long name of a file")
	if err := os.WriteFile(file, make([]byte, 9000), 0o644); err != nil {
		t.Fatal(err)
	}
	guesttest.Run(t, "mmd", "-i", disk, "::directory")
	for _, to := range []string{"::", "::SHORT.TXT", "::directory/another name", "::directory/x"} {
		guesttest.Run(t, "mcopy", "-i", disk, file, to)
	}
	return disk
}

func TestDamage(t *testing.T) {
	t.Parallel()
	for _, v := range variants[:5] {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			guesttest.Damage(t, guesttest.File(t, filled(t, v.size, v.options...)), read)
		})
	}
}

// TestConcurrently reads with several goroutines.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	f, err := Open(guesttest.File(t, filled(t, variants[0].size, variants[0].options...)))
	if err != nil {
		t.Fatal(err)
	}
	guesttest.Concurrently(t, f)
}

// FuzzOpen changes a small file system: bytes are laid over it from an offset
// on.
func FuzzOpen(f *testing.F) {
	base, err := os.ReadFile(filled(f, 256<<10, "-F", "12", "-s", "1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint32(11), []byte{1, 2, 3, 4})
	f.Add(uint32(512), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		img := append(guesttest.Bytes(nil), base...)
		copy(img[int(at)%len(img):], change)
		_ = read(img)
	})
}
