package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// TestAfterReboot pretends that the machine crashed after pieces were
// marked present, and that some of their data was lost.
func TestAfterReboot(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat)*3/4)
	lost := a.file.Map.Segments()[1]
	if _, err := h.entry.disk.Data.WriteAt(make([]byte, lost.Length), lost.Offset); err != nil {
		t.Fatal(err)
	}
	editState(t, h.entry, disk.OffBoot, func(id uint64) uint64 { return id ^ 1 })
	_ = h.Close()
	_ = c.Close()
	_, before := src.reset()

	h = openFile(t, openCache(t, dir, Options{}), a.file, src)
	if h.Cached() != 0 {
		t.Errorf("%d bytes are believed without a look", h.Cached())
	}
	checkRead(t, h, a.flat, 0, len(a.flat)/2)
	if _, after := src.reset(); after == 0 || after > before/2 {
		t.Errorf("fetched %d bytes again of %d", after, before)
	}
}

// TestDamagedState costs a refetch and not an error.
func TestDamagedState(t *testing.T) {
	damage := map[string]func(path string) error{
		"header":    func(p string) error { return flip(p+".state", 3) },
		"key":       func(p string) error { return flip(p+".state", 20) },
		"truncated": func(p string) error { return os.Truncate(p+".state", 100) },
		"empty":     func(p string) error { return os.Truncate(p+".state", 0) },
		"data lost": func(p string) error { return os.Truncate(p+".data", 5) },
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, kinds[1], 1<<20+5)
			dir := t.TempDir()
			c := openCache(t, dir, Options{})
			h := openFile(t, c, a.file, src)
			checkRead(t, h, a.flat, 0, len(a.flat)/2)
			_ = h.Close()
			_ = c.Close()
			if err := do(filepath.Join(dir, disk.Files, a.file.Key())); err != nil {
				t.Fatal(err)
			}
			h = openFile(t, openCache(t, dir, Options{}), a.file, src)
			checkRead(t, h, a.flat, 0, len(a.flat))
		})
	}
}

func flip(name string, off int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0xff
	_, err = f.WriteAt(b[:], off)
	return err
}

// TestUnkeptPieces has a disk that takes no data: readers are served.
func TestUnkeptPieces(t *testing.T) {
	for _, k := range kinds {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, k, 2<<20+99)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		name := h.entry.disk.Data.Name()
		_ = h.entry.disk.Data.Close()
		var err error
		if h.entry.disk.Data, err = os.Open(name); err != nil {
			t.Fatal(err)
		}
		checkRead(t, h, a.flat, 0, len(a.flat))
		checkRead(t, h, a.flat, 1234, 500_000)
		if h.Cached() != 0 {
			t.Errorf("%s: %d bytes are said to be kept", k.name, h.Cached())
		}
	}
}

func TestCacheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1000)
	openFile(t, openCache(t, dir, Options{}), a.file, src)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %o", p, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a directory that others can write: %v", err)
	}
}

// TestNoSymlinkIsFollowed puts links where files of the cache go, and where
// its directories are: what they lead to is neither made, read nor changed.
func TestNoSymlinkIsFollowed(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1000)
	blob := []byte("a manifest")
	digest := src.put(blob)
	for _, there := range []bool{false, true} {
		for _, name := range []string{
			disk.Files + "/" + a.file.Key() + ".data", disk.Files + "/" + a.file.Key() + ".state", disk.Files + "/" + a.file.Key() + ".meta",
			disk.Blobs + "/" + strings.TrimPrefix(digest, "sha256:"), refPath("host/vm:latest"), disk.Files, disk.Blobs, disk.Refs,
		} {
			dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
			c := openCache(t, dir, Options{})
			link := filepath.Join(dir, name)
			_ = os.Remove(link)
			if there && filepath.Dir(name) == "." {
				must(t, os.Mkdir(victim, 0o700))
			} else if there {
				must(t, os.WriteFile(victim, blob, 0o600))
			}
			must(t, os.Symlink(victim, link))
			before, _ := os.Stat(victim)

			if h, err := c.File(a.file, src); err == nil {
				checkRead(t, h, a.flat, 0, len(a.flat))
				_ = h.Close()
			} else if !strings.HasPrefix(name, disk.Files) {
				t.Errorf("%s: a file: %v", name, err)
			}
			if _, err := c.Blob(digest); err == nil {
				t.Errorf("%s: a blob was read through a link", name)
			}
			_ = c.PutBlob(digest, blob)
			_ = c.PutRef("host/vm:latest", digest)
			_, _ = c.Prune(t.Context(), PruneOptions{All: true})

			after, err := os.Stat(victim)
			switch {
			case !there && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("%s: what the link leads to was made: %v", name, err)
			case there && (err != nil || !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size()):
				t.Errorf("%s: what the link leads to was changed: %v", name, err)
			}
		}
	}
}

func TestBlobsAndRefs(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	src := &fakeSource{}
	digest := src.put([]byte("manifest"))
	if _, err := c.Blob(digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent blob: %v", err)
	}
	if err := c.PutBlob(digest, []byte("other")); !errors.Is(err, layout.ErrContent) {
		t.Errorf("wrong blob kept: %v", err)
	}
	if err := c.PutBlob(digest, []byte("manifest")); err != nil {
		t.Fatal(err)
	}
	if b, err := c.Blob(digest); err != nil || string(b) != "manifest" {
		t.Errorf("blob %q, %v", b, err)
	}
	if err := flip(filepath.Join(dir, disk.Blobs, digest[len("sha256:"):]), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("damaged blob: %v", err)
	}
	for _, bad := range []string{"", "sha256:../../x", "md5:00", "sha256:" + string(make([]byte, 64))} {
		if err := c.PutBlob(bad, nil); !errors.Is(err, layout.ErrContent) {
			t.Errorf("digest %q: %v", bad, err)
		}
	}
	if err := c.PutRef("host/repo:tag", digest); err != nil {
		t.Fatal(err)
	}
	if got, seen, err := c.Ref("host/repo:tag"); err != nil || got != digest || time.Since(seen) > time.Minute {
		t.Errorf("ref %q, %v, %v", got, seen, err)
	}
	if _, _, err := c.Ref("host/repo:other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown ref: %v", err)
	}
}

// TestInUseLock: nobody can take the file of a process that uses it.
func TestInUseLock(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1000)
	dir := t.TempDir()
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	f, err := os.OpenFile(filepath.Join(dir, disk.Files, a.file.Key()+".state"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if ok, err := disk.TryLock(f, unix.F_WRLCK, disk.LockInUse, 1); ok || err != nil {
		t.Errorf("locked while in use: %v, %v", ok, err)
	}
	_ = h.Close()
	if ok, err := disk.TryLock(f, unix.F_WRLCK, disk.LockInUse, 1); !ok || err != nil {
		t.Errorf("not free after use: %v, %v", ok, err)
	}
}

// TestSteadyReadsDoNotAllocate reads what is present.
func TestSteadyReadsDoNotAllocate(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	h.entry.state.Unseal() // as if one piece far away were missing
	p := make([]byte, 64<<10)
	var off int64
	if n := testing.AllocsPerRun(100, func() {
		if _, err := h.ReadAt(context.Background(), p, off%int64(len(a.flat)/2)); err != nil {
			t.Fatal(err)
		}
		off += 777_777
	}); n > 0 {
		t.Errorf("%v allocations a read", n)
	}
}

// TestPartsAreShared has a second file that shares all but one part with
// the first, at other places, and a chunk that occurs three times.
func TestPartsAreShared(t *testing.T) {
	for _, k := range []kind{kinds[0], kinds[2], kinds[3]} {
		t.Run(k.name, func(t *testing.T) {
			rng := newRand(t)
			src := &fakeSource{}
			a := makeFile(t, rng, src, k, 4<<20)
			dir := t.TempDir()
			c := openCache(t, dir, Options{})
			h := openFile(t, c, a.file, src)
			checkRead(t, h, a.flat, 0, len(a.flat))
			_ = h.Close()
			src.reset()

			extra := make([]byte, 1<<20)
			fillRandom(rng, extra)
			b := artifact{data: append(bytes.Clone(a.data), extra...)}
			f := &layout.File{Name: "second", Parts: append([]layout.Part(nil), a.file.Parts...)}
			end := int64(len(a.data))
			last := storePart(t, src, k, extra, end)
			for range 3 {
				last.Offset = end
				f.Parts = append(f.Parts, last)
				end += last.Length
			}
			b.data = append(append(b.data, extra...), extra...)
			f.Map, b.flat = spread(t, rng, b.data)
			b.file = f
			for _, c := range []*Cache{c, openCache(t, dir, Options{})} {
				h := openFile(t, c, f, src)
				checkRead(t, h, b.flat, 0, len(b.flat))
				_ = h.Close()
			}
			if n, fetched := src.reset(); n != 1 || fetched != last.StoredSize {
				t.Errorf("%d requests, %d bytes; the new part has %d", n, fetched, last.StoredSize)
			}
		})
	}
}

// TestDamagedDonor has a first file whose bytes rotted on disk.
func TestDamagedDonor(t *testing.T) {
	rng := newRand(t)
	src := &fakeSource{}
	a := makeFile(t, rng, src, kinds[2], 2<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if err := flip(h.entry.disk.Data.Name(), a.file.Map.Segments()[0].Offset); err != nil {
		t.Fatal(err)
	}
	m, flat := spread(t, rng, a.data)
	second := &layout.File{Name: "second", Parts: a.file.Parts, Map: m}
	checkRead(t, openFile(t, c, second, src), flat, 0, len(flat))
}

// TestOtherPieces has the same blob with and without digests of its
// pieces, as two tools push it: each form is kept, and bytes are fetched
// once.
func TestOtherPieces(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 3<<20)
	plain := *a.file
	plain.Parts = []layout.Part{a.file.Parts[0]}
	plain.Parts[0].Pieces = nil
	c := openCache(t, t.TempDir(), Options{})
	for range 2 {
		for _, f := range []*layout.File{a.file, &plain} {
			h := openFile(t, c, f, src)
			checkRead(t, h, a.flat, 0, len(a.flat))
		}
	}
	if _, fetched := src.reset(); fetched != int64(len(a.data)) {
		t.Errorf("fetched %d bytes of a blob of %d", fetched, len(a.data))
	}
}
