package whole

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ways are the files without names, and those of a file system that has
// none of that kind.
var ways = map[string]int{"nameless": unix.O_TMPFILE, "named": 0}

// names are what is in a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range found {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestFile(t *testing.T) {
	for way, flag := range ways {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "out.tar")
			for _, text := range []string{"first", "second"} {
				before, _ := os.ReadFile(path)
				f, err := create(path, flag)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString(text); err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(path); string(got) != string(before) {
					t.Errorf("%q before it is whole", got)
				}
				if err := errors.Join(f.Commit(), f.Close()); err != nil {
					t.Fatal(err)
				}
				st, err := os.Stat(path)
				if got, _ := os.ReadFile(path); string(got) != text || err != nil || st.Mode() != 0o600 {
					t.Errorf("%q, %v, %v", got, st.Mode(), err)
				}
			}
			f, err := create(path, flag)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil || names(t, dir) != "out.tar" {
				t.Errorf("given up: %v, %s", err, names(t, dir))
			}
			if _, err := create(filepath.Join(dir, "gone", "x"), flag); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("in a directory that is not there: %v", err)
			}
		})
	}
}

func TestDir(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "vm")
	make := func() *Dir {
		d, err := MakeDir(path + "/")
		if err != nil {
			t.Fatal(err)
		}
		f, err := d.Create("x")
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if f.Name() != filepath.Join(path, "x") {
			t.Errorf("a file is called %s", f.Name())
		}
		return d
	}
	if err := make().Close(); err != nil || names(t, parent) != "" {
		t.Errorf("given up: %v, %s", err, names(t, parent))
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	d := make()
	if err := errors.Join(d.Commit(0o750), d.Close()); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o750 || names(t, path) != "x" || names(t, parent) != "vm" {
		t.Errorf("%v, %v: %s, %s", st.Mode(), err, names(t, path), names(t, parent))
	}
	d = make()
	if err := d.Commit(0o750); !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("over what is not empty: %v", err)
	}
	if err := d.Close(); err != nil || names(t, parent) != "vm" {
		t.Errorf("%v, %s", err, names(t, parent))
	}
}

// What the dead have left goes, what the living work on stays, and so does
// what is called in another way.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	for _, name := range []string{".vm.epochfs-00000001", ".vm.epochfs-fe000002/sub", ".vmx.epochfs-00000003", ".vm.other", ".vm.epochfs-notes", ".vm.epochfs-1"} {
		if err := os.MkdirAll(filepath.Join(parent, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(parent, ".vm.epochfs-00000004"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(parent, filepath.Join(parent, ".vm.epochfs-00000005")); err != nil {
		t.Fatal(err)
	}
	a, err := MakeDir(filepath.Join(parent, "vm"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := create(filepath.Join(parent, "vm"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	placeOf(filepath.Join(parent, "vm"))
	want := []string{filepath.Base(a.temp), filepath.Base(b.temp), ".vm.epochfs-00000005", ".vm.epochfs-1", ".vm.epochfs-notes", ".vm.other", ".vmx.epochfs-00000003"}
	slices.Sort(want)
	if got := names(t, parent); got != strings.Join(want, " ") {
		t.Errorf("left are %s, want %q", got, want)
	}
}

// Many who make the same: each is whole, and one of them is it in the end.
func TestTogether(t *testing.T) {
	for way, flag := range ways {
		parent := t.TempDir()
		path := filepath.Join(parent, "out")
		var g errgroup.Group
		for i := range 8 {
			g.Go(func() error {
				for range 20 {
					f, err := create(path, flag)
					if err != nil {
						return err
					}
					if _, err := fmt.Fprintf(f, "%d%d", i, i); err != nil {
						return err
					}
					if err := f.Commit(); err != nil {
						return err
					}
					if got, err := os.ReadFile(path); err != nil || len(got) != 2 || got[0] != got[1] {
						return fmt.Errorf("%q, %v", got, err)
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil || names(t, parent) != "out" {
			t.Errorf("%s: %v, %s", way, err, names(t, parent))
		}
	}
}
