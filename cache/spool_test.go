package cache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"golang.org/x/sys/unix"
)

// spools are the names of spools in a cache's directory.
func spools(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, disk.Files, "spool.tmp-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestSpoolCounts writes a spool in a cache that is full: what nobody uses
// goes for it, what another process keeps meanwhile is kept beside it, and
// where there is no room the spool is told.
func TestSpoolCounts(t *testing.T) {
	const quota = 32 << 20
	src := &fakeSource{}
	rng := newRand(t)
	dir := t.TempDir()
	mount, push := openCache(t, dir, Options{Size: quota}), openCache(t, dir, Options{Size: quota})
	idle, busy := makeFile(t, rng, src, kinds[0], 18<<20), makeFile(t, rng, src, kinds[0], 12<<20)
	h := openFile(t, mount, idle.file, src)
	checkRead(t, h, idle.flat, 0, len(idle.flat))
	_ = h.Close()

	s, err := push.Spool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.Repeat([]byte("spool"), 1<<18)
	for off := int64(0); off < 12<<20; off += int64(len(buf)) {
		if _, err := s.WriteAt(buf, off); err != nil {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, disk.Files, idle.file.Key()+".data")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that nobody uses stays: %v", err)
	}
	h = openFile(t, mount, busy.file, src)
	checkRead(t, h, busy.flat, 0, len(busy.flat))
	if n := diskUse(t, dir); n > quota {
		t.Errorf("%d bytes on disk, %d allowed", n, quota)
	}

	at := int64(12 << 20)
	for err = nil; err == nil && at < 2*quota; at += int64(len(buf)) {
		_, err = s.WriteAt(buf, at)
		if n := diskUse(t, dir); n > quota {
			t.Errorf("%d bytes on disk, %d allowed", n, quota)
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("at %d: %v", at, err)
	}
	if inv, err := push.Inventory(); err != nil || inv.Disk < 12<<20 || inv.Small > 1<<20 {
		t.Errorf("inventory: %v, %+v", err, inv)
	}
	got := make([]byte, len(buf))
	if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, buf) {
		t.Errorf("read back: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left := spools(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// TestSpoolOfTheDead finds a spool that its process did not remove: who
// opens the cache does, and who needs room; but not one that is in use.
func TestSpoolOfTheDead(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, Options{Size: 64 << 20})
	s, err := c.Spool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(spools(t, dir)[0], old, old); err != nil {
		t.Fatal(err)
	}
	_ = openCache(t, dir, Options{}).Close()
	if left := spools(t, dir); len(left) != 1 {
		t.Fatalf("one in use was removed: %v", left)
	}
	_ = s.f.Close() // as a process that dies does
	_ = openCache(t, dir, Options{}).Close()
	if left := spools(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}

	if s, err = c.Spool(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = s.f.Close()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if left := spools(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
