package mounting

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// TestOnlyRead streams an artifact, and makes a directory of it, from a cache
// that is only read: what it has is not fetched, what it lacks is, and nothing
// is added to it.
func TestOnlyRead(t *testing.T) {
	t.Parallel()
	const step = 4 << 20 // what is fetched is a multiple of it
	half := largeFile() / 2 / step * step
	data := make([]byte, largeFile()+77)
	rand.NewChaCha8([32]byte{1}).Read(data)
	files := []artifacttest.File{{Name: "config.json", Data: []byte("{}")}, {Name: "memory-ranges", Data: data}}
	for name, opts := range map[string]artifacttest.Options{
		"pieces":    {Piece: 256 << 10},
		"no pieces": {},
		"chunks":    {Zstd: true, Chunk: 1 << 20},
		"raw":       {V2: true, Chunk: 4 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot(files, opts))
			cfg := p.cfg
			onlyRead := func() (o *Opened, missing int64) {
				t.Helper()
				p.cfg.OnlyRead = true
				o = p.mustOpen(p.ref)
				p.cfg = cfg
				sum, err := o.Sizes()
				if err != nil {
					t.Fatal(err)
				}
				p.front.Reset()
				return o, sum.Data - sum.Local
			}
			o, missing := onlyRead()
			if got := stream(t, o, o.Artifact.Files[1]); !bytes.Equal(got, data) || missing != int64(len(data))+2 {
				t.Errorf("without a cache: other bytes, or %d missing", missing)
			}
			if _, err := os.Stat(cfg.CacheDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a cache was made: %v", err)
			}

			mount := p.mustOpen(p.ref)
			beside, err := mount.File(mount.Artifact.Files[1])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := beside.ReadAt(t.Context(), make([]byte, half), step); err != nil {
				t.Fatal(err)
			}
			kept := beside.Cached()
			if err := mount.Close(); err != nil {
				t.Fatal(err)
			}
			o, missing = onlyRead()
			if kept < half || missing > int64(len(data))+2-kept {
				t.Errorf("%d bytes were kept, and %d are missing", kept, missing)
			}
			if got := stream(t, o, o.Artifact.Files[1]); !bytes.Equal(got, data) {
				t.Error("from a half full cache: other bytes")
			}
			if got := p.front.Counts().BlobBytes; got > missing*11/10 || !opts.Zstd && got < missing/2 {
				t.Errorf("%d bytes were fetched, %d were missing", got, missing)
			}
			if _, left := onlyRead(); left != missing {
				t.Errorf("%d bytes are missing after that, %d were", left, missing)
			}
			dir := filepath.Join(t.TempDir(), "vm")
			p.front.Reset()
			if err := o.Artifact.WriteDir(t.Context(), dir, o, snapshot.DirOptions{}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "memory-ranges")); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the directory has other bytes: %v", err)
			}
			if got := p.front.Counts().BlobBytes; got > missing*11/10 {
				t.Errorf("%d bytes were fetched for the directory, %d were missing", got, missing)
			}
		})
	}
}
