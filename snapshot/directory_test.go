package snapshot_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// A directory is made where there is none or an empty one, also behind a
// link; what cannot be replaced is told before anything is read.
func TestWriteDir(t *testing.T) {
	files := smallFiles(t)
	art, store := mustLoad(t, artifacttest.Snapshot(files, artifacttest.Options{Envelope: artifacttest.Envelope}))
	src := snapshot.DownloaderPayloads(store, "vm")
	top := t.TempDir()
	t.Chdir(top)
	for _, dir := range []string{"empty", "behind", "full", "here"} {
		must(t, os.Mkdir(dir, 0o750))
	}
	must(t, os.WriteFile("full/x", nil, 0o600))
	must(t, os.Symlink("behind", "link"))
	must(t, os.Symlink("nowhere", "dangling"))
	for dir, at := range map[string]string{"new": "new", "empty/": "empty", "link": "behind"} {
		if err := art.WriteDir(t.Context(), dir, src, snapshot.DirOptions{}); err != nil {
			t.Error(err)
			continue
		}
		mode := fs.FileMode(0o750)
		if dir == "new" {
			mode = 0o700
		}
		st, err := os.Lstat(at)
		if err != nil || !st.IsDir() || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
		checkDir(t, at, files)
	}
	t.Chdir("here")
	calls := store.Calls("GetBlob")
	for _, dir := range []string{".", "../here", "../full", "../dangling", "../gone/x", "../full/x", "/proc"} {
		if err := snapshot.CheckDir(dir); err == nil {
			t.Errorf("%s can be made", dir)
		}
		if err := art.WriteDir(t.Context(), dir, src, snapshot.DirOptions{}); err == nil || store.Calls("GetBlob") != calls {
			t.Errorf("%s: %v, %d blobs were read", dir, err, store.Calls("GetBlob")-calls)
		}
	}
	broken := &breaking{Payloads: src, name: "more", at: 100}
	if err := art.WriteDir(t.Context(), "../empty2", broken, snapshot.DirOptions{}); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	if got := entries(t, top); got != "behind dangling empty full here link new" {
		t.Errorf("left are %s", got)
	}
}

// A mount point is no directory that another could take the place of.
func TestWriteDirOnAMount(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := snapshot.CheckDir(dir); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Error(err)
	}
	if err := snapshot.CheckDir(filepath.Join(dir, "vm")); err != nil {
		t.Error(err)
	}
	bound := filepath.Join(dir, "bound") // on the same file system as its parent
	must(t, os.Mkdir(bound, 0o700))
	must(t, unix.Mount(bound, bound, "", unix.MS_BIND, ""))
	if err := snapshot.CheckDir(bound); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) string {
	t.Helper()
	found, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range found {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// checkDir compares a directory with what it was made of.
func checkDir(t *testing.T, dir string, files []artifacttest.File) {
	t.Helper()
	env, err := os.ReadFile(filepath.Join(dir, "snapshot.json"))
	if err != nil || string(env) != artifacttest.Envelope {
		t.Errorf("%s: envelope %s, %v", dir, env, err)
	}
	for _, f := range files {
		got, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s: %s is %q, %v", dir, f.Name, got, err)
		}
	}
	if found, err := os.ReadDir(dir); err != nil || len(found) != len(files)+1 {
		t.Errorf("%s holds %v, %v", dir, found, err)
	}
}
