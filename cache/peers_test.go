package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/packedtest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// packedArtifact stores data without holes as a packed file, whose index the
// cache has, as mounting keeps it there.
func packedArtifact(t *testing.T, rng *rand.Rand, src *fakeSource, c *Cache, name string, data []byte) artifact {
	t.Helper()
	f := &layout.File{Name: name, Mode: 0o600, Map: sparse.Dense(int64(len(data)))}
	index := packedtest.Pack(rng, f, data, packed.MinGranule, src.put)
	x := f.Index
	frames := [][]byte{index[x.Size-headLength(x):]}
	for _, ref := range x.Head.Sections {
		frames = append(frames, index[ref.Offset:ref.Offset+ref.Stored])
	}
	for _, frame := range frames {
		must(t, c.PutBlob(digests.Format(sha256.Sum256(frame)), frame))
	}
	return artifact{f, data, data}
}

func headLength(x *layout.Index) int64 {
	n := x.Size
	for _, ref := range x.Head.Sections {
		n -= ref.Stored
	}
	return n
}

// TestGranulesAreShared reads a second snapshot of a VM when the first is in
// the cache: only what differs is fetched.
func TestGranulesAreShared(t *testing.T) {
	t.Parallel()
	const g = packed.MinGranule
	rng := newRand(t)
	data := make([]byte, 200*g+77)
	fillRandom(rng, data)
	changed := bytes.Clone(data)
	fillRandom(rng, changed[20*g:22*g])         // two granules are new
	copy(changed[50*g:60*g], data[100*g:110*g]) // ten have moved
	for name, other := range map[string]bool{"again": false, "in another process": true, "under another title": false} {
		src, dir := &fakeSource{}, t.TempDir()
		c := openCache(t, dir, Options{})
		title := "memory-ranges"
		a := packedArtifact(t, rng, src, c, title, data)
		first := openFile(t, c, a.file, src)
		checkRead(t, first, a.flat, 0, len(a.flat))
		if other {
			must(t, first.Close())
			must(t, c.Close())
			c = openCache(t, dir, Options{})
		}
		if name == "under another title" {
			title = "mem"
		}
		b := packedArtifact(t, rng, src, c, title, changed)
		src.reset()
		h := openFile(t, c, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		if _, fetched := src.reset(); fetched > 3*g {
			t.Errorf("%s: %d bytes fetched", name, fetched)
		}
		if n := c.Counts().Copied; n != int64(len(data)-2*g) {
			t.Errorf("%s: %d bytes copied of %d", name, n, len(data)-2*g)
		}
		eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	}
}

// TestPeersThatAreNoHelp has files in the cache of which nothing can be
// copied: their bits have rotted, or their index is gone.
func TestPeersThatAreNoHelp(t *testing.T) {
	t.Parallel()
	const g = packed.MinGranule
	rng := newRand(t)
	data := make([]byte, 40*g)
	fillRandom(rng, data)
	changed := bytes.Clone(data)
	changed[5]++
	for name, c := range map[string]struct {
		spoil func(t *testing.T, c *Cache, a artifact)
		wrong int64
	}{
		"rotten": {func(t *testing.T, c *Cache, a artifact) {
			f, err := c.dir.OpenFile("files/"+a.file.Key()+".data", 1)
			must(t, err)
			_, err = f.WriteAt([]byte{^a.flat[7*g]}, 7*g)
			must(t, err)
			must(t, f.Close())
		}, 1},
		"without its head": {func(t *testing.T, c *Cache, a artifact) {
			removeBlob(t, c, a.file.Index.HeadDigest)
		}, 0},
		"without a section": {func(t *testing.T, c *Cache, a artifact) {
			removeBlob(t, c, digests.Format(a.file.Index.Head.Sections[0].Sum))
		}, 0},
	} {
		src := &fakeSource{}
		cache := openCache(t, t.TempDir(), Options{})
		a := packedArtifact(t, rng, src, cache, "cow.raw", data)
		h := openFile(t, cache, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		must(t, h.Close())
		c.spoil(t, cache, a)
		b := packedArtifact(t, rng, src, cache, "cow.raw", changed)
		h = openFile(t, cache, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		if n := cache.Counts().Wrong[disk.ByCopy]; n != c.wrong {
			t.Errorf("%s: %d pieces found wrong", name, n)
		}
	}
}

// xfsDir mounts a new file system that can share blocks.
func xfsDir(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "xfs"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 320<<20)) // mkfs.xfs makes none below 300 MB
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestGranulesShareBlocks has a second snapshot take the blocks of the first,
// on a file system that can do that.
func TestGranulesShareBlocks(t *testing.T) {
	tier.Long(t, "mounts a file system")
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system takes root")
	}
	t.Parallel()
	const g = packed.MinGranule
	rng, src, dir := newRand(t), &fakeSource{}, xfsDir(t)
	c := openCache(t, filepath.Join(dir, "cache"), Options{})
	data := make([]byte, 1000*g)
	fillRandom(rng, data)
	root, err := os.Open(dir)
	must(t, err)
	defer root.Close()
	used := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Syncfs(int(root.Fd())))
		must(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	a := packedArtifact(t, rng, src, c, "memory-ranges", data)
	first := openFile(t, c, a.file, src)
	checkRead(t, first, a.flat, 0, len(a.flat))
	changed := bytes.Clone(data)
	for i := range 100 {
		changed[10*i*g]++
	}
	b := packedArtifact(t, rng, src, c, "memory-ranges", changed)
	before := used()
	h := openFile(t, c, b.file, src)
	checkRead(t, h, b.flat, 0, len(b.flat))
	if more := used() - before; more > int64(len(data))/4 {
		t.Errorf("the second file takes %d bytes more, of %d", more, len(data))
	}
	eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	checkRead(t, first, a.flat, 0, len(a.flat))
}

// TestPeersComeInOrder looks at files of the same title first, and of these
// at the last used.
func TestPeersComeInOrder(t *testing.T) {
	t.Parallel()
	rng, src := newRand(t), &fakeSource{}
	c := openCache(t, t.TempDir(), Options{})
	var keys []string
	for i := range 6 {
		data := make([]byte, 3*packed.MinGranule)
		fillRandom(rng, data)
		name := "cow.raw"
		if i%2 == 0 {
			name = fmt.Sprint("data-", i, ".raw")
		}
		a := packedArtifact(t, rng, src, c, name, data)
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, 1)
		keys = append(keys, a.file.Key())
	}
	data := make([]byte, packed.MinGranule)
	fillRandom(rng, data)
	b := packedArtifact(t, rng, src, c, "cow.raw", data)
	h := openFile(t, c, b.file, src)
	got := c.index.findPacked(h.entry, patient)
	if want := []string{keys[5], keys[3], keys[1], keys[4]}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, not %v", got, want)
	}
	if _, err := h.ReadAt(context.Background(), make([]byte, 1), 0); err != nil {
		t.Error(err)
	}
}

// removeBlob removes a small blob that is there.
func removeBlob(t *testing.T, c *Cache, digest string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(c.Dir(), disk.Blobs, strings.TrimPrefix(digest, "sha256:"))))
}
