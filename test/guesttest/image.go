// Package guesttest makes disks of guests with the real tools, and compares
// what is read from them with the kernel's mount.
package guesttest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/tier"
)

// Bytes is an image in memory.
type Bytes []byte

// Size returns the number of bytes.
func (b Bytes) Size() int64 { return int64(len(b)) }

// ReadAt copies bytes.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	n, err := vfs.Clip(p, off, b.Size())
	if n > 0 {
		copy(p[:n], b[off:])
	}
	return n, err
}

// File is an image in a file. It is closed at the end of the test.
func File(t testing.TB, name string) vfs.Image {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &fileImage{f, info.Size()}
}

type fileImage struct {
	io.ReaderAt
	size int64
}

func (f *fileImage) Size() int64 { return f.size }

// PieceSize is the unit in which a snapshot's disk is fetched.
const PieceSize = 256 << 10

// Counting is an image behind a cache of pages without an end, as the sandbox
// has one, and counts what the cache reads.
type Counting struct {
	vfs.Image
	mu     sync.Mutex
	pages  map[int64]bool
	pieces map[int64]bool
	// Trips counts round trips: a Prefetch is one, and a ReadAt that misses
	// is one. Ranges counts their requests, Bytes the bytes read.
	Trips, Ranges int
	Bytes         int64
	// Log has a line for each trip.
	Log []string
}

// Count returns an image that counts its reads.
func Count(img vfs.Image) *Counting {
	return &Counting{Image: img, pages: map[int64]bool{}, pieces: map[int64]bool{}}
}

// Fetched returns the bytes fetched of a disk in pieces.
func (c *Counting) Fetched() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return int64(len(c.pieces)) * PieceSize
}

// ReadAt counts the pages that were not fetched before.
func (c *Counting) ReadAt(p []byte, off int64) (int, error) {
	c.fetch("read", []vfs.Extent{{Offset: off, Length: int64(len(p))}})
	return c.Image.ReadAt(p, off)
}

// Prefetch fetches all ranges in one round trip.
func (c *Counting) Prefetch(ranges []vfs.Extent) { c.fetch("prefetch", ranges) }

func (c *Counting) fetch(what string, ranges []vfs.Extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bytes int64
	count, last := 0, int64(-2)
	for _, r := range ranges {
		for page := r.Offset / vfs.PageSize; page*vfs.PageSize < r.Offset+r.Length; page++ {
			if c.pages[page] || page*vfs.PageSize >= c.Size() {
				continue
			}
			c.pages[page] = true
			c.pieces[page*vfs.PageSize/PieceSize] = true
			bytes += min(vfs.PageSize, c.Size()-page*vfs.PageSize)
			if page != last+1 {
				count++
			}
			last = page
		}
	}
	if count == 0 {
		return
	}
	c.Trips++
	c.Ranges += count
	c.Bytes += bytes
	c.Log = append(c.Log, fmt.Sprintf("%s: %d ranges, %d KiB, from %d", what, count, bytes>>10, ranges[0].Offset))
}

// Run runs a program and returns its standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	tier.Long(t, "runs the tools that make disks")
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "TZ=UTC")
	var errs strings.Builder
	cmd.Stderr = &errs
	if !strings.Contains(name, "/") {
		if path := find(name); path != "" {
			cmd.Path, cmd.Err = path, nil
		}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, tail(errs.String()))
	}
	return string(out)
}

// find looks for a program also where root's programs are.
func find(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// tempDir is a directory in memory, if there is one: file systems in loop
// devices are synced all the time.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "guesttest")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Sparse makes a file of holes.
func Sparse(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(tempDir(t), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return name
}

// Mount mounts an image over a loop device, until the test ends or the
// returned function is called.
func Mount(t testing.TB, image, kind, options string) (dir string, unmount func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "guesttest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) }) // also if it cannot be mounted
	if options != "" {
		options = "," + options
	}
	awaitDetached(t, image)
	Run(t, "mount", "-t", kind, "-o", "loop"+options, image, dir)
	var once sync.Once
	unmount = func() {
		once.Do(func() { unmountAt(t, dir) })
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// awaitDetached blocks until no loop device has an image: a mount namespace of
// another test may keep an earlier mount of it for as long as that test takes.
func awaitDetached(t testing.TB, image string) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); attached(image); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s is still attached to a loop device", image)
		}
	}
}

func attached(image string) bool {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	return slices.ContainsFunc(files, func(name string) bool {
		text, err := os.ReadFile(name)
		return err == nil && strings.TrimSpace(string(text)) == image
	})
}

// unmountAt unmounts a directory, after making its file system read-only: a
// mount namespace that another test's child has just left or copied may keep
// it mounted, and the image would then lack what is not yet written. It may
// be busy for a moment: a process that another test starts has this one's
// open files until it runs its program.
func unmountAt(t testing.TB, dir string) {
	t.Helper()
	end := time.Now().Add(30 * time.Second)
	err := settle(dir)
	for ; err == unix.EBUSY && time.Now().Before(end); err = settle(dir) {
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("unmount %s: %v", dir, err)
	}
}

func settle(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return unix.Unmount(dir, 0)
}

// Copy copies a file, sparsely.
func Copy(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(tempDir(t), "copy")
	Run(t, "cp", "--sparse=always", from, to)
	return to
}

// tail shortens a program's explanation of its flags.
func tail(text string) string { return text[:min(len(text), 500)] }
