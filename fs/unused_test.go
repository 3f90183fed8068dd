package fs

import (
	"path/filepath"
	"testing"
)

// TestDropUnused reads a file, which is then complete, and is open or not.
func TestDropUnused(t *testing.T) {
	needRoot(t)
	data := randomBytes(3<<20+17, 1)
	disk := diskFile(t, data)
	m := mounted(t, []File{fileOf("f", int64(len(data)), disk)}, Options{})
	n := m.tree.byName["f"]
	path := filepath.Join(m.Dir(), "f")
	// reads returns how many READs a read of all the file is, without
	// passthrough.
	reads := func() int64 {
		t.Helper()
		disk.ready.Store(false)
		before := disk.reads.Load()
		if got := help(t, "sha", path); got != shaLine(data) {
			t.Fatal("wrong bytes")
		}
		m.eventually(t, "f", Usage{})
		return disk.reads.Load() - before
	}
	drop := func() bool {
		n.open.Lock()
		defer n.open.Unlock()
		return m.tree.dropUnused(n)
	}
	gone := func() bool { return reads() > 0 }

	reads()
	if n := reads(); n != 0 {
		t.Fatalf("%d READs of pages that the kernel has", n)
	}
	if drop() {
		t.Error("pages of a file that is not complete were dropped")
	}
	disk.ready.Store(true)
	m.DropUnused("f")
	if drop() {
		t.Error("pages were dropped that had gone")
	}
	eventually(t, "the pages are gone", gone)

	held := start(t, helperCmd("hold", path, "mmap"))
	m.eventually(t, "f", Usage{Cached: 1})
	disk.ready.Store(true)
	if drop() {
		t.Error("pages of a file that is open were dropped")
	}
	held.finish(t) // its RELEASE drops them
	m.eventually(t, "f", Usage{})
	eventually(t, "the pages are gone", gone)

	reads()
	disk.ready.Store(true)
	m.tree.backing.Store(false)
	if drop() {
		t.Error("pages were dropped, although no open is in passthrough mode")
	}
	if n := reads(); n != 0 {
		t.Errorf("%d READs of pages that should have stayed", n)
	}
}
