package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/test/tier"
)

// readOnlyDir makes dir be on a read-only file system until the test ends.
func readOnlyDir(t *testing.T, dir string) {
	t.Helper()
	tier.Long(t, "mounts")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

// snapshotOf is what a directory holds, with the times of its files.
func snapshotOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(p)
		b.WriteString(p + " " + info.ModTime().String() + " " + string(text) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fillCache has in dir the first half of one file of each kind, all of
// another, and a manifest.
func fillCache(t *testing.T, dir string, src *fakeSource) (half, all []artifact, digest string) {
	t.Helper()
	rng := newRand(t)
	c := openCache(t, dir, Options{})
	for _, k := range kinds {
		a, b := makeFile(t, rng, src, k, 4<<20), makeFile(t, rng, src, k, 3<<20)
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat)/2)
		_ = h.Close()
		h = openFile(t, c, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
		_ = h.Close()
		half, all = append(half, a), append(all, b)
	}
	text := []byte("manifest")
	digest = src.put(text)
	if err := errors.Join(c.PutBlob(digest, text), c.PutRef("host/vm:latest", digest)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	return half, all, digest
}

// TestReadOnlyCache reads from a cache that cannot be written: what it has
// comes from it, what it lacks is fetched, nothing in it changes, and that
// is said once.
func TestReadOnlyCache(t *testing.T) {
	src := &fakeSource{}
	dir := t.TempDir()
	half, all, digest := fillCache(t, dir, src)
	before := snapshotOf(t, dir)
	readOnlyDir(t, dir)
	src.reset()
	log := &countingLog{}
	c := openCache(t, dir, Options{Log: log.logger()})

	for n, b := range all {
		h := openFile(t, c, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		if f, ok := h.Backing(); !ok || !h.Verified() || h.Kept() || !h.ReadOnly() {
			t.Errorf("kind %d: for the kernel %v, verified %v", n, f, h.Verified())
		}
		if hold, err := h.Hold(); hold == nil || err != nil {
			t.Errorf("kind %d: it is not held: %v", n, err)
		} else {
			_ = hold.Close()
		}
	}
	if blob, err := c.Blob(digest); err != nil || string(blob) != "manifest" {
		t.Errorf("blob: %q, %v", blob, err)
	}
	if got, _, err := c.Ref("host/vm:latest"); err != nil || got != digest {
		t.Errorf("reference: %q, %v", got, err)
	}
	if n, _ := src.reset(); n != 0 {
		t.Errorf("%d requests for what the cache has", n)
	}

	for n, a := range half {
		h := openFile(t, c, a.file, src)
		here := h.Cached()
		checkRead(t, h, a.flat, 0, len(a.flat))
		stored := a.file.StoredSize()
		_, fetched := src.reset()
		if n != 4 && fetched > stored*3/4 { // a frame begins at its start
			t.Errorf("kind %d: %d bytes fetched of %d, half was there", n, fetched, stored)
		}
		if h.Cached() != here {
			t.Errorf("kind %d: %d bytes kept, before %d", n, h.Cached(), here)
		}
	}
	fresh := makeFile(t, newRand(t), src, kinds[1], 72<<20)
	h := openFile(t, c, fresh.file, src)
	for off := 0; off < len(fresh.flat); off += 1 << 20 {
		checkRead(t, h, fresh.flat, off, 1<<20)
	}
	if _, fetched := src.reset(); fetched > fresh.file.StoredSize()*21/20 {
		t.Errorf("fetched %d bytes of %d", fetched, fresh.file.StoredSize())
	}
	if held := c.memory.Held(); held > overlay.Size {
		t.Errorf("%d bytes are held in memory", held)
	}
	if err := c.PutBlob(src.put([]byte("x")), []byte("x")); !errors.Is(err, ErrNotKept) {
		t.Errorf("blob: %v", err)
	}
	if n := log.count(); n != 1 {
		t.Errorf("%d log records, want one", n)
	}
	if snapshotOf(t, dir) != before {
		t.Error("something was written")
	}
}

// TestReadOnlyCopies takes a part of a new file from another that a
// read-only cache has.
func TestReadOnlyCopies(t *testing.T) {
	tier.Long(t, "fills caches with files of all kinds")
	src := &fakeSource{}
	dir := t.TempDir()
	_, all, _ := fillCache(t, dir, src)
	readOnlyDir(t, dir)
	src.reset()
	c := openCache(t, dir, Options{})
	for n, b := range all {
		if b.file.Index != nil {
			continue // with another map it has other granules
		}
		m, flat := spread(t, newRand(t), b.data)
		f := *b.file
		f.Map = m
		h := openFile(t, c, &f, src)
		checkRead(t, h, flat, 0, len(flat))
		// Of a blob without digests only a whole file can be vouched for.
		if _, fetched := src.reset(); fetched != 0 {
			t.Errorf("kind %d: %d bytes were fetched", n, fetched)
		}
	}
}

// TestReadOnlyAfterReboot has what a read-only cache holds come from before
// the last boot, with a bit of it flipped: no wrong byte comes of it, and
// what is right is not fetched.
func TestReadOnlyAfterReboot(t *testing.T) {
	tier.Long(t, "fills caches with files of all kinds")
	src := &fakeSource{}
	dir := t.TempDir()
	half, _, _ := fillCache(t, dir, src)
	for _, a := range half {
		otherBoot(t, filepath.Join(dir, disk.Files, a.file.Key()+".state"))
		data, err := os.OpenFile(filepath.Join(dir, disk.Files, a.file.Key()+".data"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := a.file.Map.Segments()[0].Offset
		if _, err := data.WriteAt([]byte{^a.flat[at]}, at); err != nil {
			t.Fatal(err)
		}
		_ = data.Close()
	}
	readOnlyDir(t, dir)
	src.reset()
	c := openCache(t, dir, Options{})
	for n, a := range half {
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat)/2)
		_, fetched := src.reset()
		if fetched == 0 || n != 4 && fetched > 3<<20/2 {
			t.Errorf("kind %d: %d bytes fetched", n, fetched)
		}
	}
}

// otherBoot makes a state file one of another run of the machine, in which
// the file was not sealed.
func otherBoot(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(append(bytes.Repeat([]byte{7}, 16), 0, 0, 0, 0), disk.OffBoot); err != nil {
		t.Fatal(err)
	}
}

// readerDirEnv makes the test binary a process that reads from a cache of
// which it may only read the files.
const readerDirEnv = "EPOCHFS_TEST_READER_DIR"

func readingProcess(dir string) {
	t := &quiet{}
	src, files := diskFiles(t)
	c, err := Open(dir, Options{})
	t.must(err)
	c.pace.patient()
	src.reset()
	p := make([]byte, len(files[1].flat))
	h, err := c.File(files[1].file, src)
	t.must(err)
	if _, err := h.ReadAt(context.Background(), p, 0); err != nil || !bytes.Equal(p, files[1].flat) {
		t.Fatal("wrong bytes", err)
	}
	if n, _ := src.reset(); n != 0 || h.Kept() {
		t.Fatal(n, "requests, kept", h.Kept())
	}
	h2, err := c.File(files[3].file, src) // not there
	t.must(err)
	if _, err := h2.ReadAt(context.Background(), p[:100], 0); err != nil || !bytes.Equal(p[:100], files[3].flat[:100]) {
		t.Fatal("wrong bytes", err)
	}
	os.Exit(0)
}

// TestCacheOfAnother has a user read from the cache of another, who lets
// him read it and no more.
func TestCacheOfAnother(t *testing.T) {
	tier.Long(t, "is another user")
	if os.Geteuid() != 0 {
		t.Skip("being another user needs root")
	}
	src, files := diskFiles(t)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, files[1].file, src)
	checkRead(t, h, files[1].flat, 0, len(files[1].flat))
	_ = h.Close()
	_ = c.Close()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // it is of this test, too
		t.Fatal(err)
	}
	for p := filepath.Dir(dir); p != "/"; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err != nil || info.Mode()&0o001 == 0 {
			t.Skipf("%s is closed to other users (%v)", p, err)
		}
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(p, 0o755)
		}
		return errors.Join(err, os.Chmod(p, 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
	before := snapshotOf(t, dir)
	exe := filepath.Join(dir, "..", "reader.test")
	if text, err := os.ReadFile(os.Args[0]); err != nil || os.WriteFile(exe, text, 0o755) != nil {
		t.Fatal(err)
	}
	reader := exec.CommandContext(t.Context(), exe)
	reader.Env = append(os.Environ(), readerDirEnv+"="+dir)
	reader.Dir = "/"
	reader.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := reader.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if snapshotOf(t, dir) != before {
		t.Error("something was written")
	}
}
