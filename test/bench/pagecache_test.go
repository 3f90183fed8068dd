package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPageCache counts the pages of a file that was just written.
func TestPageCache(t *testing.T) {
	dir := t.TempDir()
	const size = 64 * pageSize
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := pageCache(dir)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("no cachestat before Linux 6.5")
	}
	if err != nil {
		t.Fatal(err)
	}
	if got != size {
		t.Errorf("%d bytes in the page cache, not the %d that were written", got, size)
	}
}

// TestHolesOf writes a file with two stretches of data, exports it and reads
// its map again.
func TestHolesOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{1 << 20, 5 << 20} {
		if _, err := f.WriteAt(make([]byte, 2*pageSize), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(8 << 20); err != nil {
		t.Fatal(err)
	}
	e, err := newExport(path + ".tar")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.addFile("a", path), e.close()); err != nil {
		t.Fatal(err)
	}
	m, err := extractFile(path+".tar", "a", path+".one")
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"o":1048576,"l":8192},{"o":5242880,"l":8192}]`
	if m.Text() != want || m.Size() != 8<<20 {
		t.Errorf("map %s of %d bytes, not %s", m.Text(), m.Size(), want)
	}
}
