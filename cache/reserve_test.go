package cache

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// imageDir mounts a new file system of a kind that mkfs.KIND makes, of so many
// bytes, until the test ends.
func imageDir(t *testing.T, kind string, size int64) string {
	t.Helper()
	tier.Long(t, "mounts")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	base := t.TempDir()
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "mnt")
	err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(dir, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, args := range [][]string{{"mkfs." + kind, "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", "-t", kind, image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	probe, err := os.CreateTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	defer os.Remove(probe.Name())
	if err := unix.Fallocate(int(probe.Fd()), 0, 0, 4096); !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		t.Fatalf("fallocate on %s: %v", kind, err)
	}
	return filepath.Join(dir, "cache")
}

// TestWithoutFallocate has the cache on file systems without fallocate: what
// is read is kept there, sealed, and not fetched again.
func TestWithoutFallocate(t *testing.T) {
	for _, kind := range []string{"ext2", "ext3"} {
		t.Run(kind, func(t *testing.T) {
			dir := imageDir(t, kind, 64<<20)
			src := &fakeSource{}
			rng := newRand(t)
			var all []artifact
			c := openCache(t, dir, Options{})
			for _, k := range kinds[:4] {
				a := makeFile(t, rng, src, k, 3<<20)
				h := openFile(t, c, a.file, src)
				checkRead(t, h, a.flat, 0, len(a.flat))
				eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
				if !h.Kept() || h.Cached() != int64(len(a.data)) {
					t.Errorf("%s: kept %v, %d bytes", k.name, h.Kept(), h.Cached())
				}
				_ = h.Close()
				all = append(all, a)
			}
			if err := c.PutBlob(src.put([]byte("{}")), []byte("{}")); err != nil {
				t.Errorf("a manifest: %v", err)
			}
			_ = c.Close()
			src.reset()
			c = openCache(t, dir, Options{})
			for _, a := range all {
				h := openFile(t, c, a.file, src)
				checkRead(t, h, a.flat, 0, len(a.flat))
				_ = h.Close()
			}
			if n, _ := src.reset(); n != 0 {
				t.Errorf("%d requests for what is there", n)
			}
			f, err := os.CreateTemp(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if zeros, err := Try(f); err != nil || !zeros {
				t.Errorf("a try: zeros %v, %v", zeros, err)
			}
			_ = c.Close()
		})
	}
}

// TestFullWithoutFallocate fills an ext2 up to the last block at each of the
// moments when a state needs some: no store to a mapped page fails, which
// would kill the test, and readers see nothing.
func TestFullWithoutFallocate(t *testing.T) {
	dir := imageDir(t, "ext2", 16<<20)
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	left := func(n int64) (giveBack func()) {
		t.Helper()
		name := filepath.Join(filepath.Dir(dir), "filler")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Statfs_t
		for {
			if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
				t.Fatal(err)
			}
			free := int64(st.Bavail)*int64(st.Bsize) - n
			if free <= 0 {
				break
			}
			if _, err := f.Write(make([]byte, min(free, 64<<10))); err != nil {
				break // its own indirect blocks took the last
			}
		}
		if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() { _ = os.Remove(name) }
	}
	for _, room := range []int64{0, 2 << 10, 6 << 10, 12 << 10, 100 << 10} {
		c := openCache(t, dir, Options{Size: 1 << 30})
		giveBack := left(room)
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		_ = h.Close()
		giveBack()
		_ = c.Close()
	}
	c := openCache(t, dir, Options{Size: 1 << 30})
	defer c.Close()
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if !h.Kept() || h.Cached() != int64(len(a.data)) {
		t.Errorf("when there is room again: kept %v, %d bytes", h.Kept(), h.Cached())
	}
	_ = h.Close()
}
