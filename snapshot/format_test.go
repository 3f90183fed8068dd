package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

const mib = 1 << 20

func load(t testing.TB, a *artifacttest.Artifact) (*snapshot.Artifact, *artifacttest.Store, error) {
	t.Helper()
	store := artifacttest.NewStore()
	store.Add("vm", "latest", a)
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	return art, store, err
}

func mustLoad(t testing.TB, a *artifacttest.Artifact) (*snapshot.Artifact, *artifacttest.Store) {
	t.Helper()
	art, store, err := load(t, a)
	if err != nil {
		t.Fatal(err)
	}
	return art, store
}

// pattern is n bytes that differ from MiB to MiB. The race detector need not
// look at the bytes as they are made: nobody else has them yet.
//
//go:norace
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>20 + i>>8 + i)
	}
	return b
}

// Random files with random maps, in every form of storage, come out as
// the flat copy.
func TestRandomFilesInEveryForm(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	for round := range 12 {
		files := []artifacttest.File{
			artifacttest.RandomFile(rng, "memory-ranges", 3*mib),
			artifacttest.RandomFile(rng, "cow.raw", 2000),
			{Name: "config.json", Data: []byte(`{"a":1}`), Mode: 0o600},
			{Name: "empty"},
		}
		for name, o := range map[string]artifacttest.Options{
			"v1":       {},
			"pieces":   {Piece: 256 << 10, Envelope: artifacttest.Envelope},
			"v2":       {V2: true},
			"zstd":     {Zstd: true},
			"chunked":  {Zstd: true, Chunk: mib},
			"raw":      {Chunk: mib},
			"two MiB":  {Zstd: true, Chunk: 2 * mib},
			"envelope": {V2: true, Envelope: artifacttest.Envelope},
		} {
			art, store := mustLoad(t, artifacttest.Snapshot(files, o))
			src := snapshot.DownloaderPayloads(store, "vm")
			got, _ := untarred(t, store, "vm", "latest")
			for i, f := range files {
				if !holds(t, src, art.Files[i], f.Data) {
					t.Errorf("round %d, %s: payload of %s differs", round, name, f.Name)
				}
				if !bytes.Equal(got[f.Name].Data, f.Data) {
					t.Errorf("round %d, %s: tar of %s differs", round, name, f.Name)
				}
			}
			if art.Files[2].Mode != 0o600 || art.Files[1].Mode != 0o644 {
				t.Errorf("modes %o %o", art.Files[2].Mode, art.Files[1].Mode)
			}
		}
	}
}

// Chunks of every size that the format allows, with real data for the
// small ones, a last chunk of one byte among them.
func TestChunkSizes(t *testing.T) {
	for _, zstd := range []bool{false, true} {
		for _, c := range []struct{ chunk, size int }{
			{mib, 3 * mib}, {mib, 2*mib + 1}, {2 * mib, 2*mib + 1}, {2 * mib, 4 * mib}, {3 * mib, 7*mib + 5},
			{4 * mib, 9 * mib}, {8 * mib, 8*mib + 1}, {8 * mib, 8 * mib},
		} {
			data := pattern(c.size)
			art, store := mustLoad(t, artifacttest.Snapshot(
				[]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{Zstd: zstd, V2: true, Chunk: int64(c.chunk)}))
			f := art.Files[0]
			if want := (c.size + c.chunk - 1) / c.chunk; len(f.Parts) != want || f.Parts[0].Length != int64(min(c.chunk, c.size)) {
				t.Errorf("%d in %d: %d parts, first %d", c.size, c.chunk, len(f.Parts), f.Parts[0].Length)
			}
			if !holds(t, snapshot.DownloaderPayloads(store, "vm"), f, data) {
				t.Errorf("%d in %d: content differs", c.size, c.chunk)
			}
		}
	}
}

// chunkDigest is a made-up digest.
func chunkDigest(i int64) string { return digests.Of(fmt.Append(nil, "chunk ", i)) }

// split makes an artifact whose one file is split into raw chunks that
// nobody can read: only the manifest is looked at.
func split(size, chunk int64, zstd bool) *artifacttest.Artifact {
	return artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges"}}, artifacttest.Options{
		V2: true,
		Edit: func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			m.Layers = nil
			meta := manifest.SnapshotFile{Mode: 0o644, Size: size}
			for i := int64(0); i*chunk < size; i++ {
				d := manifest.Descriptor{
					MediaType: manifest.MediaTypeVMMemory, Digest: chunkDigest(i), Size: min(chunk, size-i*chunk),
					Annotations: map[string]string{manifest.AnnotationTitle: "memory-ranges"},
				}
				if zstd {
					d.MediaType += manifest.SuffixZstd
					d.Size = 1000
				}
				m.Layers = append(m.Layers, d)
				meta.Chunks = append(meta.Chunks, d.Digest)
			}
			cfg.Files["memory-ranges"] = meta
		},
	})
}

func TestLargeChunkSizesAreFound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for chunk := int64(mib); chunk <= 512*mib; chunk *= 2 {
		for _, size := range []int64{chunk + 1, 2 * chunk, 2*chunk + 1, 3*chunk - 1, 7*chunk + 12345, 1 + rng.Int64N(40*chunk)} {
			art, _ := mustLoad(t, split(size, chunk, false))
			f := art.Files[0]
			if want := (size + chunk - 1) / chunk; int64(len(f.Parts)) != want || f.PayloadSize() != size {
				t.Fatalf("%d in %d: %d parts of %d bytes", size, chunk, len(f.Parts), f.PayloadSize())
			}
			for i, p := range f.Parts {
				if p.Offset != int64(i)*chunk || p.Length != min(chunk, size-p.Offset) {
					t.Fatalf("%d in %d: part %d is %+v", size, chunk, i, p)
				}
			}
		}
	}
}

// Of 2 GiB + 1 in five chunks only the first frame's header tells which
// chunk size it is.
func TestAmbiguousChunkSizes(t *testing.T) {
	const size, chunk = 2<<30 + 1, 512 * mib
	header := append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x80, 0x58}, 0, 0, 0, 0x20) // says 512 MiB
	for _, plain := range []bool{false, true} {
		a := split(size, chunk, true)
		store := artifacttest.NewStore()
		store.Add("vm", "latest", a)
		frame := append(header, make([]byte, 990)...)
		a.Blobs = map[string][]byte{chunkDigest(0): frame}
		dl := &fakeBlob{Store: store, digest: chunkDigest(0), data: frame}
		var d snapshot.Downloader = dl
		if plain {
			d = struct{ snapshot.Downloader }{dl}
		}
		art, err := snapshot.Load(t.Context(), d, "vm", "latest", snapshot.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f := art.Files[0]
		if len(f.Parts) != 5 || f.Parts[0].Length != chunk || f.Parts[4].Length != 1 {
			t.Errorf("%+v", f.Parts)
		}
		if !plain && (dl.ranges != 1 || dl.ranged != 18) {
			t.Errorf("%d ranges, %d bytes", dl.ranges, dl.ranged)
		}
	}
	for name, frame := range map[string][]byte{
		"no frame":        make([]byte, 1000),
		"no size":         append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x58}, make([]byte, 994)...),
		"a wrong size":    append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x80, 0x58, 0, 0, 0, 0x10}, make([]byte, 990)...),
		"no whole MiB":    append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x80, 0x58, 1, 0, 0, 0x20}, make([]byte, 990)...),
		"more than 2^62":  append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0xC0, 0x58}, bytes.Repeat([]byte{0xFF}, 994)...),
		"negative: 2^63+": append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0xC0, 0x58, 0, 0, 0, 0, 0, 0, 0, 0x80}, make([]byte, 986)...),
	} {
		store := artifacttest.NewStore()
		store.Add("vm", "latest", split(size, chunk, true))
		dl := &fakeBlob{Store: store, digest: chunkDigest(0), data: frame}
		if _, err := snapshot.Load(t.Context(), dl, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fakeBlob has one blob more, whatever its digest.
type fakeBlob struct {
	*artifacttest.Store
	digest         string
	data           []byte
	ranges, ranged int64
}

func (f *fakeBlob) GetBlob(ctx context.Context, name, d string) (io.ReadCloser, error) {
	if d != f.digest {
		return f.Store.GetBlob(ctx, name, d)
	}
	return io.NopCloser(bytes.NewReader(f.data)), nil
}

func (f *fakeBlob) GetBlobRange(ctx context.Context, name, d string, off, n int64) (io.ReadCloser, error) {
	if d != f.digest {
		return f.Store.GetBlobRange(ctx, name, d, off, n)
	}
	f.ranges++
	f.ranged += n
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(f.data), off, n)), nil
}

// Chunks of equal content are one blob, which stands in the list twice
// and under two titles; one whose layers all stand under another title
// is found by digest.
func TestRepeatedDigests(t *testing.T) {
	zeros := make([]byte, 4*mib)
	other := append(bytes.Clone(zeros[:2*mib]), pattern(mib)...)
	for _, zstd := range []bool{false, true} {
		files := []artifacttest.File{{Name: "cow.raw", Data: zeros}, {Name: "memory-ranges", Data: other}, {Name: "twin.raw", Data: zeros}}
		for name, edit := range map[string]func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig){
			"all layers":    nil,
			"each once":     func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers = unique(m.Layers, true) },
			"no twin layer": func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers = unique(m.Layers, false) },
		} {
			art, store := mustLoad(t, artifacttest.Snapshot(files, artifacttest.Options{V2: true, Zstd: zstd, Chunk: mib, Edit: edit}))
			if len(art.Files) != 3 {
				t.Fatalf("%s: %d files", name, len(art.Files))
			}
			for i, f := range art.Files {
				if f.Name != files[i].Name || !holds(t, snapshot.DownloaderPayloads(store, "vm"), f, files[i].Data) {
					t.Errorf("%s: %s differs", name, f.Name)
				}
			}
		}
	}
}

// unique drops repeated layers of a title, or of all.
func unique(layers []manifest.Descriptor, byTitle bool) []manifest.Descriptor {
	seen := map[string]bool{}
	var out []manifest.Descriptor
	for _, l := range layers {
		key := l.Digest
		if byTitle {
			key += l.Title()
		}
		if !seen[key] {
			out = append(out, l)
		}
		seen[key] = true
	}
	return out
}

func TestCloudImage(t *testing.T) {
	parts := [][]byte{pattern(1000), []byte("second"), pattern(77)}
	art, store := mustLoad(t, artifacttest.CloudImage("win11.qcow2", parts...))
	if art.Kind != manifest.KindCloudImage || art.Config != nil || art.Envelope != nil || !art.Created.Equal(artifacttest.Created) || len(art.Files) != 1 {
		t.Fatalf("%+v", art)
	}
	f := art.Files[0]
	if f.Name != "win11.qcow2" || len(f.Parts) != 3 || !f.Map.IsDense() {
		t.Errorf("%+v", f)
	}
	if !holds(t, snapshot.DownloaderPayloads(store, "vm"), f, bytes.Join(parts, nil)) {
		t.Error("joined wrongly")
	}
	if err := art.WriteTar(t.Context(), io.Discard, nil, snapshot.TarOptions{}); !errors.Is(err, snapshot.ErrKind) {
		t.Errorf("tar of a cloud image: %v", err)
	}
}

func TestIndex(t *testing.T) {
	child := func(name string) *artifacttest.Artifact {
		return artifacttest.Snapshot([]artifacttest.File{{Name: name, Data: []byte(name)}}, artifacttest.Options{})
	}
	arm, amd, att := child("arm"), child("amd"), child("attestation")
	for _, c := range []struct {
		platforms []string
		children  []*artifacttest.Artifact
		want      string
		platform  string
		taken     string
	}{
		{[]string{"unknown/unknown", "linux/arm64", "linux/amd64"}, []*artifacttest.Artifact{att, arm, amd}, "", "linux/amd64", "amd"},
		{[]string{"unknown/unknown", "linux/arm64"}, []*artifacttest.Artifact{att, arm}, "", "linux/arm64", "arm"},
		{[]string{"linux/amd64", "linux/arm64"}, []*artifacttest.Artifact{amd, arm}, "linux/arm64", "linux/arm64", "arm"},
		{[]string{"linux/amd64"}, []*artifacttest.Artifact{amd}, "linux/riscv64", "", ""},
		{[]string{"unknown/unknown"}, []*artifacttest.Artifact{att}, "", "", ""},
		{[]string{"linux/amd64"}, []*artifacttest.Artifact{artifacttest.Index([]string{"linux/amd64"}, []*artifacttest.Artifact{amd})}, "", "", ""},
	} {
		index := artifacttest.Index(c.platforms, c.children)
		store := artifacttest.NewStore()
		store.Add("vm", "latest", index)
		art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{Platform: c.want})
		if c.taken == "" {
			if err == nil {
				t.Errorf("%v: took %s", c.platforms, art.Platform)
			}
			continue
		}
		if err != nil || art.Platform != c.platform || art.Files[0].Name != c.taken || art.Index != index.Digest() {
			t.Errorf("%v: %+v, %v", c.platforms, art, err)
		}
		if c.want == "" {
			if files, _ := untarred(t, store, "vm", "latest"); files[c.taken].Data == nil {
				t.Errorf("tar without %s", c.taken)
			}
		}
	}
}

func TestOtherKindsAreRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		`{"config":{"mediaType":"` + manifest.MediaTypeOCIImageConfig + `"}}`: "manifest is container-image, not a snapshot",
		`{"artifactType":"application/vnd.cocoonstack.snapshot.v3+json"}`:     "manifest is unknown, not a snapshot",
		`{"artifactType":"` + manifest.ArtifactTypeOSImage + `"}`:             "manifest is cloud-image, not a snapshot",
	} {
		store := artifacttest.NewStore()
		if err := store.PutManifest(t.Context(), "vm", "latest", []byte(text), ""); err != nil {
			t.Fatal(err)
		}
		err := snapshot.Stream(t.Context(), []byte(text), store, snapshot.StreamOptions{Name: "vm", Writer: io.Discard})
		if !errors.Is(err, snapshot.ErrKind) || err.Error() != want {
			t.Errorf("Stream: %v", err)
		}
		if strings.Contains(want, "cloud") {
			continue
		}
		if _, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, snapshot.ErrKind) || err.Error() != want {
			t.Errorf("Load: %v", err)
		}
	}
}
