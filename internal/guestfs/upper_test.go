package guestfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// cocoon are the options with which cocoon makes the disk of a guest.
var cocoon = []string{"-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,discard"}

// overlay makes a disk as a guest with an OCI image has one, changes files of
// the lower layer through a real overlay, and copies the disk while it is
// mounted.
func overlay(t *testing.T) (copied string) {
	t.Helper()
	lower := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"etc/passwd", "etc/kept", "etc/removed", "etc/rewritten", "opt/old/file", "opt/moved/file"} {
		must(os.MkdirAll(filepath.Dir(filepath.Join(lower, name)), 0o755))
		must(os.WriteFile(filepath.Join(lower, name), []byte(strings.Repeat(name, 1000)), 0o644))
	}
	disk := guesttest.Sparse(t, 64<<20)
	guesttest.Run(t, "mke2fs", append(cocoon, disk)...)
	dir, unmount := guesttest.Mount(t, disk, "ext4", "")
	must(os.Mkdir(filepath.Join(dir, "upper"), 0o755))
	must(os.Mkdir(filepath.Join(dir, "work"), 0o755))
	merged := t.TempDir()
	guesttest.Run(t, "mount", "-t", "overlay", "overlay", "-o",
		"lowerdir="+lower+",upperdir="+dir+"/upper,workdir="+dir+"/work,metacopy=on,redirect_dir=on", merged)
	at := func(name string) string { return filepath.Join(merged, name) }
	must(os.Chmod(at("etc/passwd"), 0o600))
	must(os.Remove(at("etc/removed")))
	must(os.WriteFile(at("etc/rewritten"), []byte("new"), 0o644))
	must(os.WriteFile(at("etc/new"), []byte("new"), 0o644))
	must(os.RemoveAll(at("opt/old")))
	must(os.Mkdir(at("opt/old"), 0o755))
	must(os.Rename(at("opt/moved"), at("opt/renamed")))
	guesttest.Run(t, "sync", "-f", merged)
	copied = guesttest.Copy(t, disk)
	guesttest.Run(t, "umount", merged)
	unmount()
	return copied
}

// walk returns the inode of a path.
func walk(t *testing.T, fsys FS, path string) uint64 {
	t.Helper()
	at := fsys.Root()
	for part := range strings.SplitSeq(path, "/") {
		var err error
		if at, err = fsys.Lookup(at, part); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return at
}

func TestUpper(t *testing.T) {
	t.Parallel()
	all, err := Volumes(guesttest.File(t, overlay(t)))
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	whole, err := Open(all[0])
	if err != nil {
		t.Fatal(err)
	}
	if state := whole.Describe().State; !strings.HasPrefix(state, "recovered in memory") {
		t.Errorf("state %q", state)
	}
	fsys, err := Upper(whole)
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) (string, error) {
		p := make([]byte, 100)
		n, err := fsys.ReadAt(walk(t, fsys, path), p, 0)
		return string(p[:n]), err
	}
	if got, _ := read("etc/rewritten"); got != "new" {
		t.Errorf("a new file reads as %q", got)
	}
	if _, err := read("etc/passwd"); !errors.Is(err, ErrMetacopy) {
		t.Errorf("a file of which only the mode changed: %v", err)
	}
	if err := fsys.Extents(walk(t, fsys, "etc/passwd"), func(vfs.Extent) error { return nil }); !errors.Is(err, ErrMetacopy) {
		t.Errorf("its extents: %v", err)
	}
	if info, err := fsys.Stat(walk(t, fsys, "etc/passwd")); err != nil || info.Mode != 0o600 || info.Size != 10000 {
		t.Errorf("its metadata: %+v, %v", info, err)
	}
	for path, want := range map[string]bool{"etc/removed": true, "etc/new": false, "opt/moved": true, "opt/renamed": false} {
		if info, err := fsys.Stat(walk(t, fsys, path)); err != nil || IsWhiteout(info) != want {
			t.Errorf("%s: %+v, %v", path, info, err)
		}
	}
	for path, want := range map[string]bool{"opt/old": true, "etc": false} {
		if got, err := IsOpaque(fsys, walk(t, fsys, path)); got != want || err != nil {
			t.Errorf("%s: opaque %v, %v", path, got, err)
		}
	}
	if _, err := fsys.Lookup(fsys.Root(), "etc"); err != nil {
		t.Error(err)
	}
	if _, err := fsys.Lookup(walk(t, fsys, "etc"), "kept"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of the lower layer: %v", err)
	}
	if got, err := IsMetacopy(whole, walk(t, whole, "upper/etc/passwd")); !got || err != nil {
		t.Errorf("seen from outside: %v, %v", got, err)
	}
}

// TestNoUpper refuses the view of a file system that is not an overlay's.
func TestNoUpper(t *testing.T) {
	t.Parallel()
	disk := guesttest.Sparse(t, 16<<20)
	guesttest.Run(t, "mke2fs", append(cocoon, disk)...)
	fsys, err := Open(Volume{Image: guesttest.File(t, disk)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Upper(fsys); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestOpenNamesFormats names what is there and cannot be read.
func TestOpenNamesFormats(t *testing.T) {
	t.Parallel()
	btrfs := make([]byte, 1<<20)
	copy(btrfs[0x10040:], "_BHRfS_M")
	luks := append([]byte("LUKS\xba\xbe\x00\x02"), make([]byte, 1<<20)...)
	for want, disk := range map[string][]byte{"btrfs": btrfs, "luks": luks, "unknown file system": make([]byte, 4096)} {
		all, err := Volumes(guesttest.Bytes(disk))
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %+v, %v", want, all, err)
		}
		if _, err := Open(all[0]); !errors.Is(err, ErrUnsupported) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

type panicking struct{ FS }

func (panicking) Stat(uint64) (Info, error) { return Info{}, []error{}[1] }

// TestPanicIsDamage keeps a parser's panic from the caller.
func TestPanicIsDamage(t *testing.T) {
	t.Parallel()
	_, err := guarded{panicking{}}.Stat(1)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "upper_test.go:") {
		t.Error(err)
	}
}
