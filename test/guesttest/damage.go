package guesttest

import (
	"fmt"
	"io"
	"maps"
	"math/rand"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Damaged returns how many damaged images a test tries: 200, or what make soak
// sets.
func Damaged(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("EPOCHFS_DAMAGED_IMAGES"))
	if err != nil {
		return 200
	}
	return n
}

// deadline is how long one damaged image may take; it takes milliseconds.
const deadline = 20 * time.Second

// Damage opens and reads an image repeatedly, each time with other bytes of
// it changed: bytes that a complete reading needs and that are not zero. It
// fails the test on a panic or a timeout.
func Damage(t *testing.T, img vfs.Image, read func(vfs.Image) error) {
	t.Helper()
	DamageAt(t, img, Places(t, img, read), read)
}

// DamageAt is Damage of the bytes at some places.
func DamageAt(t *testing.T, img vfs.Image, places []int64, read func(vfs.Image) error) {
	t.Helper()
	failed := 0
	for seed := range Damaged(t) {
		m := mutate(img, places, int64(seed))
		if err := within(t, seed, func() error { return read(m) }); err != nil {
			failed++
		}
	}
	t.Logf("%d of %d damaged images are refused or stop being read; %d places", failed, Damaged(t), len(places))
}

// Places returns the offsets of the bytes that reading an image needs and that
// are not zero.
func Places(t testing.TB, img vfs.Image, read func(vfs.Image) error) []int64 {
	t.Helper()
	recorded := &recording{Image: img, pages: map[int64]bool{}}
	if err := read(recorded); err != nil {
		t.Fatalf("whole image: %v", err)
	}
	return recorded.places(t)
}

// Over returns an image with other bytes from an offset on.
func Over(img vfs.Image, at int64, change []byte) vfs.Image {
	m := &mutated{Image: img, bytes: map[int64]byte{}}
	for k, c := range change[:min(len(change), 4096)] {
		m.bytes[at+int64(k)] = c
	}
	return m
}

// within fails the test if read does not return, or panics.
func within(t *testing.T, seed int, read func() error) (err error) {
	t.Helper()
	done := make(chan struct{})
	var panicked any
	var stack []byte
	go func() {
		defer close(done)
		defer func() {
			if panicked = recover(); panicked != nil {
				stack = make([]byte, 8<<10)
				stack = stack[:runtime.Stack(stack, false)]
			}
		}()
		err = read()
	}()
	select {
	case <-done:
	case <-time.After(deadline):
		stacks := make([]byte, 64<<10)
		t.Fatalf("seed %d: does not return\n%s", seed, stacks[:runtime.Stack(stacks, true)])
	}
	if panicked != nil {
		t.Fatalf("seed %d: %v\n%s", seed, panicked, stack)
	}
	return err
}

// recording remembers which pages were read.
type recording struct {
	vfs.Image
	mu    sync.Mutex
	pages map[int64]bool
}

func (r *recording) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	for at := off / vfs.PageSize; at*vfs.PageSize < off+int64(len(p)); at++ {
		r.pages[at] = true
	}
	r.mu.Unlock()
	return r.Image.ReadAt(p, off)
}

// places are the offsets of the pages' bytes that are not zero.
func (r *recording) places(t testing.TB) (all []int64) {
	t.Helper()
	p := make([]byte, vfs.PageSize)
	for _, page := range slices.Sorted(maps.Keys(r.pages)) {
		n, err := r.Image.ReadAt(p, page*vfs.PageSize)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for k, c := range p[:n] {
			if c != 0 {
				all = append(all, page*vfs.PageSize+int64(k))
			}
		}
	}
	return all
}

// mutated is an image of which some bytes are others.
type mutated struct {
	vfs.Image
	bytes map[int64]byte
}

func mutate(img vfs.Image, places []int64, seed int64) *mutated {
	random := rand.New(rand.NewSource(seed))
	m := &mutated{Image: img, bytes: map[int64]byte{}}
	for range 1 << random.Intn(7) {
		at := places[random.Intn(len(places))]
		// One byte, or a few side by side, at or beside one that is used.
		at += int64(random.Intn(5) - 2)
		for k := range int64(1 + random.Intn(4)) {
			value := byte(random.Intn(256))
			switch random.Intn(4) {
			case 0:
				value = 0xff
			case 1:
				value = 0
			}
			m.bytes[at+k] = value
		}
	}
	return m
}

func (m *mutated) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.Image.ReadAt(p, off)
	for at, c := range m.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = c
		}
	}
	return n, err
}

// Bounds on what Walk reads: a damaged file system may seem to have any number
// of files of any size.
const (
	walkFiles   = 2000
	walkDepth   = 20
	walkExtents = 2000
	walkPiece   = 100000
)

// Walk reads everything of a file system that there is to read, within
// bounds. It goes on after an error, and returns the first one.
func Walk(fsys vfs.FS) error {
	w := &walking{fsys: fsys, buffer: make([]byte, walkPiece)}
	fsys.Describe()
	w.directory(fsys.Root(), 0)
	if p, ok := fsys.(vfs.TreePrefetcher); ok {
		w.note(p.PrefetchTree(fsys.Root()))
	}
	return w.err
}

// Concurrently walks a file system in several goroutines.
func Concurrently(t *testing.T, fsys vfs.FS) {
	t.Helper()
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if err := Walk(fsys); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

type walking struct {
	fsys   vfs.FS
	buffer []byte
	files  int
	err    error
}

func (w *walking) note(err error) {
	if w.err == nil && err != nil && err != io.EOF {
		w.err = err
	}
}

var errEnough = fmt.Errorf("enough")

func (w *walking) directory(inode uint64, depth int) {
	var entries []vfs.DirEntry
	err := w.fsys.ReadDir(inode, func(e vfs.DirEntry) error {
		if entries = append(entries, e); len(entries) == walkFiles {
			return errEnough
		}
		return nil
	})
	if err != errEnough {
		w.note(err)
	}
	for k, e := range entries {
		if w.files++; w.files > walkFiles {
			return
		}
		if k%10 == 0 {
			_, err := w.fsys.Lookup(inode, e.Name)
			w.note(err)
			_, _ = w.fsys.Lookup(inode, e.Name+"?")
		}
		w.file(e.Inode, depth)
	}
}

func (w *walking) file(inode uint64, depth int) {
	info, err := w.fsys.Stat(inode)
	w.note(err)
	_, err = w.fsys.Xattrs(inode)
	w.note(err)
	switch {
	case err != nil:
	case info.Type == vfs.Directory && depth < walkDepth:
		w.directory(inode, depth+1)
	case info.Type == vfs.Symlink:
		_, err := w.fsys.Readlink(inode)
		w.note(err)
	case info.Type == vfs.Regular:
		n := 0
		err := w.fsys.Extents(inode, func(vfs.Extent) error {
			if n++; n == walkExtents {
				return errEnough
			}
			return nil
		})
		if err != errEnough {
			w.note(err)
		}
		for _, at := range []int64{0, info.Size / 2, info.Size - 1000} {
			_, err := w.fsys.ReadAt(inode, w.buffer, max(0, at))
			w.note(err)
		}
	}
}
