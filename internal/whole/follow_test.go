package whole

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFileThroughLink makes files by names that are symbolic links: the
// target gets the bytes, at once, and the link stays.
func TestFileThroughLink(t *testing.T) {
	t.Parallel()
	for way, flag := range ways {
		for name, c := range map[string]struct{ link, target string }{
			"absolute":           {"", "real/out.tar"},
			"relative":           {"real/out.tar", "real/out.tar"},
			"chain":              {"second", "real/out.tar"},
			"over a linked dir":  {"dir/../out.tar", "real/out.tar"}, // dir leads to real/deep
			"in a directory":     {"./real/deep/../out.tar", "real/out.tar"},
			"to one of its kind": {"real/deep/out.tar", "real/deep/out.tar"},
		} {
			for _, there := range []bool{true, false} {
				root := t.TempDir()
				err := errors.Join(os.MkdirAll(filepath.Join(root, "real/deep"), 0o700),
					os.Symlink("real/deep", filepath.Join(root, "dir")), os.Symlink("real/out.tar", filepath.Join(root, "second")))
				target := filepath.Join(root, c.target)
				link := c.link
				if link == "" {
					link = target
				}
				path := filepath.Join(root, "link")
				err = errors.Join(err, os.Symlink(link, path))
				if there {
					err = errors.Join(err, os.WriteFile(target, []byte("before"), 0o644))
				}
				if err != nil {
					t.Fatal(err)
				}
				f, err := create(path, flag)
				if err != nil {
					t.Fatalf("%s, %s: %v", way, name, err)
				}
				if _, err := f.WriteString("after"); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(target); there && string(got) != "before" || !there && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s, %s: %q, %v before it is whole", way, name, got, err)
				}
				if err := f.Commit(); err != nil {
					t.Fatalf("%s, %s: %v", way, name, err)
				}
				if got, err := os.ReadFile(target); err != nil || string(got) != "after" {
					t.Errorf("%s, %s: the target has %q, %v", way, name, got, err)
				}
				if got, err := os.Readlink(path); err != nil || got != link {
					t.Errorf("%s, %s: the link is %q, %v", way, name, got, err)
				}
				if got := names(t, root); got != "dir link real second" {
					t.Errorf("%s, %s: beside it are %s", way, name, got)
				}
			}
		}
	}
}

func TestFollowEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	gone := filepath.Join(dir, "gone")
	if err := errors.Join(os.Symlink("loop", loop), os.Symlink("no/such/dir/x", gone)); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(loop); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop: %v", err)
	}
	if _, err := Create(gone); !errors.Is(err, unix.ENOENT) {
		t.Errorf("into a directory that is not there: %v", err)
	}
	if got, err := Follow("/proc/self/fd/0"); err != nil || got != "/proc/self/fd/0" {
		t.Errorf("an open file's link: %q, %v", got, err)
	}
}
