package mounting

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// stream reads a file's payload to its verified end.
func stream(t *testing.T, o *Opened, f *layout.File) []byte {
	t.Helper()
	r, err := o.OpenPayload(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data := bytes.NewBuffer(make([]byte, 0, f.Map.DataSize()+bytes.MinRead))
	if _, err := io.Copy(data, struct{ io.Reader }{r}); err != nil {
		t.Fatal(err)
	}
	return data.Bytes()
}

// TestOrderedReads breaks a stream off and takes it up again: what came is
// not fetched again, what a mount beside it has fetched is not either, and
// in the end all is verified.
func TestOrderedReads(t *testing.T) {
	t.Parallel()
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
			p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot(files, opts))
			half := p.mustOpen(p.ref)
			f := half.Artifact.Files[1]
			beside, err := half.File(f)
			if err != nil {
				t.Fatal(err)
			}
			r, err := half.OpenPayload(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(20 * time.Second); beside.Cached() < largeFile()/3; {
				if time.Now().After(end) {
					t.Fatalf("%d bytes were kept", beside.Cached())
				}
				time.Sleep(time.Millisecond)
			}
			r.Close()
			if err := half.Close(); err != nil {
				t.Fatal(err)
			}

			o := p.mustOpen(p.ref)
			f = o.Artifact.Files[1]
			if beside, err = o.File(f); err != nil {
				t.Fatal(err)
			}
			if _, err := beside.ReadAt(t.Context(), make([]byte, 100), largeFile()*5/6); err != nil {
				t.Fatal(err)
			}
			there := beside.Cached()
			p.front.Reset()
			if got := stream(t, o, f); !bytes.Equal(got, data) {
				t.Error("other bytes")
			}
			missing := int64(len(data)) - there
			most := missing * 11 / 10
			if last := f.Parts[len(f.Parts)-1]; missing == last.Length {
				most = max(most, last.StoredSize) // a frame of so few bytes is larger than they are
			}
			if got := p.front.Counts().BlobBytes; got > most || !opts.Zstd && got < missing/2 {
				t.Errorf("%d bytes were fetched, %d were missing", got, missing)
			}
			if !beside.Complete() || !beside.Verified() {
				t.Errorf("complete %v, verified %v", beside.Complete(), beside.Verified())
			}
			p.front.Reset()
			if got := stream(t, o, f); !bytes.Equal(got, data) || p.front.Counts().BlobBytes > 0 {
				t.Error("what is in the cache was fetched, or is wrong")
			}
		})
	}
}

// TestWrongBytesAreNotKept streams a blob that has another digest.
func TestWrongBytesAreNotKept(t *testing.T) {
	data := bytes.Repeat([]byte("memory "), 1<<20)
	files := []artifacttest.File{{Name: "memory-ranges", Data: data}}
	for name, opts := range map[string]artifacttest.Options{"v1": {}, "frame": {Zstd: true}} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot(files, opts))
			o := p.mustOpen(p.ref)
			f := o.Artifact.Files[0]
			p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Flip: 5})
			r, err := o.OpenPayload(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := io.ReadAll(r); err == nil {
				t.Fatal("wrong bytes were taken for right")
			}
			beside, err := o.File(f)
			if err != nil {
				t.Fatal(err)
			}
			if n := beside.Cached(); n != 0 {
				t.Errorf("%d wrong bytes are in the cache", n)
			}
		})
	}
}
