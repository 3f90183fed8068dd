package mounting

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// holey is random data with as much in holes, in segments of which few are
// aligned to anything.
func holey(t *testing.T, name string, data int64) artifacttest.File {
	t.Helper()
	var segs []sparse.Segment
	for at, left, n := int64(0), data, int64(1<<20+13); left > 0; at, left = at+2*n, left-n {
		segs = append(segs, sparse.Segment{Offset: at, Length: min(n, left)})
	}
	m, err := sparse.New(segs, 2*data+1<<20)
	if err != nil {
		t.Fatal(err)
	}
	flat := make([]byte, m.Size())
	rng := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", name))))
	for _, s := range segs {
		rng.Read(flat[s.Offset : s.Offset+s.Length])
	}
	return artifacttest.File{Name: name, Data: flat, Map: m}
}

// TestDirectoryFromAFullCache makes a directory while the cache takes but a
// part of it, in all forms that a file can have: no byte of a blob is
// fetched twice, and the files are as they must be.
func TestDirectoryFromAFullCache(t *testing.T) {
	t.Parallel()
	config := artifacttest.File{Name: "config.json", Data: []byte("{}")}
	small := []artifacttest.File{config, holey(t, "cow.raw", 3<<20+5), holey(t, "memory-ranges", 9<<20+1)}
	// A frame of more than 32 MiB, which is kept in pieces as it is decoded.
	large := []artifacttest.File{config, {Name: "memory-ranges", Data: bytes.Repeat(holey(t, "x", 1<<19).Data[:1<<19], 66)}}
	for name, c := range map[string]struct {
		files []artifacttest.File
		opts  artifacttest.Options
		room  int64
	}{
		"pieces":       {small, artifacttest.Options{Piece: 256 << 10}, 8 << 20},
		"large pieces": {small, artifacttest.Options{Piece: 4 << 20}, 16 << 20},
		"no pieces":    {small, artifacttest.Options{}, 8 << 20},
		"chunks":       {small, artifacttest.Options{Zstd: true, Chunk: 1 << 20}, 8 << 20},
		"raw chunks":   {small, artifacttest.Options{V2: true, Chunk: 1 << 20}, 8 << 20},
		"frames":       {small, artifacttest.Options{Zstd: true}, 8 << 20},
		"large frames": {large, artifacttest.Options{Zstd: true}, 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot(c.files, c.opts))
			p.cfg.CacheSize, p.cfg.Memory = c.room, LeastMemory
			o := p.mustOpen(p.ref)
			p.front.Reset()
			dir := filepath.Join(t.TempDir(), "vm")
			if err := o.Artifact.WriteDir(t.Context(), dir, o, snapshot.DirOptions{}); err != nil {
				t.Fatal(err)
			}
			sizes := map[string]int64{}
			for _, l := range o.Artifact.Manifest.Layers {
				sizes[l.Digest] = l.Size
			}
			for digest, n := range p.front.BlobBytes() {
				if n > sizes[digest] {
					t.Errorf("blob %s of %d bytes: %d were fetched", digest, sizes[digest], n)
				}
			}
			if sum, err := o.Sizes(); err != nil || sum.Local == 0 || sum.Local == sum.Data {
				t.Errorf("the cache has %d of %d bytes, %v", sum.Local, sum.Data, err)
			}
			for i := range c.files {
				checkCopy(t, filepath.Join(dir, c.files[i].Name), &c.files[i])
			}
		})
	}
}

// TestFileThatCameAhead copies a file of which all has come before its
// turn: what is under way of the file after it is not given up for that.
func TestFileThatCameAhead(t *testing.T) {
	t.Parallel()
	files := []artifacttest.File{{Name: "config.json", Data: []byte("{}")}, holey(t, "cow.raw", 3<<20+5), holey(t, "memory-ranges", 9<<20+1)}
	p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot(files, artifacttest.Options{Piece: 256 << 10}))
	o := p.mustOpen(p.ref)
	last := o.Artifact.Files[2].Parts[0]
	p.front.Reset()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path(last.Digest), Stall: 100_000, Times: 1})
	copyFile := func(i int) {
		t.Helper()
		dst, err := os.Create(filepath.Join(t.TempDir(), files[i].Name))
		if err != nil {
			t.Fatal(err)
		}
		defer dst.Close()
		if err := dst.Truncate(o.Artifact.Files[i].Size()); err != nil {
			t.Fatal(err)
		}
		if ok, err := o.CopyFile(t.Context(), dst, o.Artifact.Files[i], func(int64) {}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		checkCopy(t, dst.Name(), &files[i])
	}
	copyFile(0)
	cow, err := o.File(o.Artifact.Files[1])
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); !cow.Complete() || !cow.Verified() || p.front.BlobBytes()[last.Digest] < 100_000; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of the second file and %d of the last have come", cow.Cached(), p.front.BlobBytes()[last.Digest])
		}
	}
	copyFile(1)
	defer time.AfterFunc(300*time.Millisecond, p.front.Clear).Stop()
	copyFile(2)
	if n := p.front.BlobBytes()[last.Digest]; n != last.StoredSize {
		t.Errorf("%d bytes were fetched of %d", n, last.StoredSize)
	}
}

// checkCopy compares a file with what it was made of, holes included.
func checkCopy(t *testing.T, name string, want *artifacttest.File) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want.Data) {
		t.Errorf("%s: other bytes, %v", name, err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if want.Map != nil && st.Blocks*512 > want.Map.DataSize()+int64(2*want.Map.Len())*4096 {
		t.Errorf("%s takes %d bytes on disk for %d of data", name, st.Blocks*512, want.Map.DataSize())
	}
}
