package snapshot_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/packedtest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// pushPacked pushes an export in the packed format, with the artifact that
// the tag base names as base unless it is empty.
func pushPacked(t testing.TB, store *artifacttest.Store, in io.Reader, tag, base string) *snapshot.PushResult {
	t.Helper()
	opts := snapshot.PushOptions{Name: "vm", Tag: tag, Input: in, Packed: true, SpoolDir: t.TempDir()}
	if base != "" {
		opts.Base = &snapshot.PushBase{Artifact: mustOpen(t, store, base), Name: "vm"}
	}
	res, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func mustOpen(t testing.TB, store snapshot.Downloader, tag string) *snapshot.Artifact {
	t.Helper()
	a, err := snapshot.Load(t.Context(), store, "vm", tag, snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// noRanges is a Downloader and nothing else.
type noRanges struct{ snapshot.Downloader }

func checkPacked(t testing.TB, store *artifacttest.Store, tag string, files []artifacttest.File) {
	t.Helper()
	for name, dl := range map[string]snapshot.Downloader{"ranges": store, "whole blobs": noRanges{store}} {
		a := mustOpen(t, dl, tag)
		for i, f := range a.Files {
			if f.Name != files[i].Name || f.Size() != int64(len(files[i].Data)) {
				t.Fatalf("%s: file %d is %s of %d bytes", name, i, f.Name, f.Size())
			}
			if !holds(t, snapshot.DownloaderPayloads(dl, "vm"), f, files[i].Data) {
				t.Errorf("%s: %s differs", name, f.Name)
			}
		}
	}
}

// Whatever the files and the way they come in, a packed artifact gives
// them back, and what it says of itself is so.
func TestPackedRandomFiles(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	files := []artifacttest.File{
		{Name: "config.json", Data: []byte(`{"cpus":1}`)},
		artifacttest.RandomFile(rng, "cow.raw", 12*mib),
		artifacttest.RandomFile(rng, "memory-ranges", 9*mib),
		{Name: "big.qcow2", Data: pattern(3*mib + 1), Mode: 0o600},
		{Name: "empty"},
	}
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for how, input := range inputs(export) {
		store := artifacttest.NewStore()
		res := pushPacked(t, store, input(), "v1", "")
		a := mustOpen(t, store, "v1")
		if res.Format != "packed" || a.Manifest.ArtifactType != manifest.ArtifactTypePacked || string(a.Envelope) != artifacttest.Envelope {
			t.Errorf("%s: %s, %s, %s", how, res.Format, a.Manifest.ArtifactType, a.Envelope)
		}
		if a.Files[0].Index != nil || a.Files[3].Index == nil || a.Files[3].Mode != 0o600 || a.Files[3].MediaType != manifest.MediaTypeDiskQcow2 {
			t.Errorf("%s: %+v", how, a.Files[3])
		}
		checkPacked(t, store, "v1", files)
	}
}

// family is three memories of one guest, of which some pages changed in
// between. A page is written as its number and the memories that changed
// it, so that its content is the same exactly when the guest's was.
type family struct {
	Page      int64 `json:"page"`
	Snapshots map[string]struct {
		Size     int64      `json:"size"`
		DataRuns [][2]int64 `json:"data_runs"`
	} `json:"snapshots"`
	Changed map[string][][2]int64 `json:"changed"`
}

func readFamily(t testing.TB) *family {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(readFile(t, "../test/traces/family.json.gz")))
	if err != nil {
		t.Fatal(err)
	}
	var f family
	if err := json.NewDecoder(z).Decode(&f); err != nil {
		t.Fatal(err)
	}
	return &f
}

// memory makes the first bytes of a memory of the family, as a sparse file.
func (f *family) memory(t testing.TB, name string, size int64, changes ...string) artifacttest.File {
	t.Helper()
	version := make([]byte, size/f.Page)
	for i, c := range changes {
		for _, run := range f.Changed[c] {
			for p := run[0]; p < min(run[0]+run[1], size/f.Page); p++ {
				version[p] = byte(i + 1)
			}
		}
	}
	data := make([]byte, size)
	var segs []sparse.Segment
	for _, run := range f.Snapshots[name].DataRuns {
		if run[0] >= size/f.Page {
			break
		}
		end := min(run[0]+run[1], size/f.Page)
		segs = append(segs, sparse.Segment{Offset: run[0] * f.Page, Length: (end - run[0]) * f.Page})
		for p := run[0]; p < end; p++ {
			artifacttest.FillBits(data[p*f.Page:(p+1)*f.Page], uint64(p)<<8|uint64(version[p]), 0x0f)
		}
	}
	m, err := sparse.New(segs, size)
	if err != nil {
		t.Fatal(err)
	}
	return artifacttest.File{Name: "memory-ranges", Data: data, Map: m}
}

// A second snapshot of a guest sends what changed, and reads right.
func TestPackedSharesWithItsBase(t *testing.T) {
	tier.Long(t, "compresses some hundred MB")
	t.Parallel()
	f := readFamily(t)
	const size = 64 << 20
	m1 := []artifacttest.File{f.memory(t, "m1", size)}
	m2 := []artifacttest.File{f.memory(t, "m2", size, "m1-m2")}
	store := artifacttest.NewStore()
	first := pushPacked(t, store, bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, m1)), "v1", "")
	for how, in := range inputs(artifacttest.Tar(artifacttest.Envelope, m2)) {
		second := pushPacked(t, store, in(), "v2", "v1")
		if second.SentBytes > first.SentBytes*35/100 {
			t.Errorf("%s: the second push sent %d bytes, the first %d", how, second.SentBytes, first.SentBytes)
		}
		if a := mustOpen(t, store, "v2"); a.Config.Base != first.ManifestDigest {
			t.Errorf("%s: base %q", how, a.Config.Base)
		}
		checkPacked(t, store, "v2", m2)
	}
	again := pushPacked(t, store, bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, m2)), "v3", "v2")
	if again.SentBytes > 64<<10 { // its config, and an index that names other packs
		t.Errorf("a push of what is there sent %d bytes", again.SentBytes)
	}
}

// losing is a Store that has lost blobs.
type losing struct {
	*artifacttest.Store
	lost map[string]bool
	asks int
	from int // asked so often, they are lost
}

func (l *losing) BlobExists(ctx context.Context, name, digest string) (bool, error) {
	if l.lost[digest] {
		if l.asks++; l.asks > l.from {
			return false, nil
		}
	}
	return l.Store.BlobExists(ctx, name, digest)
}

// packs returns the digests of an artifact's packs.
func packs(a *snapshot.Artifact) (all []string) {
	for _, d := range a.Manifest.Layers {
		if d.MediaType == manifest.MediaTypePack {
			all = append(all, d.Digest)
		}
	}
	return all
}

// A pack that the registry has lost is written again where the source can
// still be read, and ends the push where it cannot.
func TestPackedBaseIsGone(t *testing.T) {
	t.Parallel()
	files := []artifacttest.File{{Name: "cow.raw", Data: make([]byte, mib)}}
	artifacttest.FillBits(files[0].Data, 1, 0x0f)
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for name, c := range map[string]struct {
		from int
		in   func() io.Reader
		want error
	}{
		"before":               {0, func() io.Reader { return bytes.NewReader(export) }, nil},
		"before, from a pipe":  {0, func() io.Reader { return io.MultiReader(bytes.NewReader(export)) }, nil},
		"in between":           {1, func() io.Reader { return bytes.NewReader(export) }, nil},
		"in between of a pipe": {1, func() io.Reader { return io.MultiReader(bytes.NewReader(export)) }, snapshot.ErrBaseGone},
	} {
		store := &losing{Store: artifacttest.NewStore(), from: c.from}
		pushPacked(t, store.Store, bytes.NewReader(export), "v1", "")
		base := mustOpen(t, store, "v1")
		store.lost = map[string]bool{packs(base)[0]: true}
		before := store.Calls("PutManifest")
		_, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), snapshot.PushOptions{
			Name: "vm", Tag: "v2", Input: c.in(), Packed: true, Base: &snapshot.PushBase{Artifact: base, Name: "vm"},
			Zstd: 9, // other frames, so that the pack is another one
		})
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if put := store.Calls("PutManifest") > before; put != (c.want == nil) {
			t.Errorf("%s: a manifest was put: %v", name, put)
		}
		if c.want == nil {
			if got := packs(mustOpen(t, store, "v2")); slices.Contains(got, packs(base)[0]) {
				t.Errorf("%s: the lost pack is still used", name)
			}
			checkPacked(t, store.Store, "v2", files)
		}
	}
}

// A pack that comes whole and is too large to be kept is read once, in order.
func TestLargePackWithoutRanges(t *testing.T) {
	tier.Long(t, "reads a pack larger than memory may hold")
	t.Parallel()
	data := make([]byte, 36*mib)
	artifacttest.Fill(data, 3) // it does not compress
	blobs := map[string][]byte{}
	store := artifacttest.NewStore()
	store.Add("vm", "v1", packedtest.RawArtifact([]*packedtest.Raw{packedtest.NewRaw("cow.raw", data, 16<<10, blobs)}, blobs, nil))
	a := mustOpen(t, store, "v1")
	before := store.Calls("GetBlob")
	r, err := snapshot.DownloaderPayloads(noRanges{store}, "vm").OpenPayload(t.Context(), a.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("other bytes, or %v", err)
	}
	if n := store.Calls("GetBlob") - before; n != 1 {
		t.Errorf("the pack was asked for %d times", n)
	}
}

// After many generations an artifact has few packs, and few bytes that
// nobody uses.
func TestPackedGenerations(t *testing.T) {
	tier.Long(t, "pushes many generations")
	t.Parallel()
	const size = 6 << 20
	const generations = 60
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, size)
	artifacttest.Fill(data, 1)
	store := artifacttest.NewStore()
	base := ""
	var files []artifacttest.File
	for n := range generations {
		for range 6 {
			at := rng.IntN(size / 4096)
			artifacttest.Fill(data[at*4096:(at+1)*4096], rng.Uint64())
		}
		files = []artifacttest.File{{Name: "memory-ranges", Data: data}}
		tag := fmt.Sprint("g", n)
		pushPacked(t, store, bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, files)), tag, base)
		base = tag
	}
	a := mustOpen(t, store, base)
	var stored int64
	for _, p := range a.Files[0].Index.Head.Packs {
		stored += p.Size
	}
	if n := len(packs(a)); n > 30 {
		t.Errorf("%d packs", n)
	}
	if stored > size*22/10 {
		t.Errorf("%d bytes of packs for %d of data", stored, size)
	}
	checkPacked(t, store, base, files)
}

// Bytes of a pack or an index that were changed reach no reader.
func TestPackedWrongBytes(t *testing.T) {
	t.Parallel()
	files := []artifacttest.File{{Name: "cow.raw", Data: pattern(2 * mib)}}
	store := artifacttest.NewStore()
	pushPacked(t, store, bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, files)), "v1", "")
	a := mustOpen(t, store, "v1")
	pack, index := packs(a)[0], a.Files[0].Index.Digest
	for name, digest := range map[string]string{"pack": pack, "index": index} {
		store.Corrupt = func(d string, data []byte) []byte {
			if d != digest {
				return data
			}
			data = bytes.Clone(data)
			data[len(data)/3] ^= 0x40
			return data
		}
		b, err := snapshot.Load(t.Context(), store, "vm", "v1", snapshot.LoadOptions{})
		if err == nil {
			var r io.ReadCloser
			if r, err = snapshot.DownloaderPayloads(store, "vm").OpenPayload(t.Context(), b.Files[0]); err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if !bytes.HasPrefix(files[0].Data, got) {
					t.Errorf("%s: wrong bytes were handed out", name)
				}
				r.Close()
			}
		}
		if !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPackedOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]snapshot.PushOptions{
		"chunks":  {Packed: true, Chunk: mib},
		"granule": {Packed: true, Granule: 48 << 10},
		"small":   {Packed: true, Granule: 4096},
	} {
		o.Name, o.Input = "vm", bytes.NewReader(nil)
		if _, err := (&snapshot.Pusher{Uploader: artifacttest.NewStore()}).Push(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// convert writes the artifact of a tag in another format.
func convert(t testing.TB, store *artifacttest.Store, from, to string, opts snapshot.PushOptions) *snapshot.PushResult {
	t.Helper()
	opts.Name, opts.Tag, opts.SpoolDir = "vm", to, t.TempDir()
	opts.Artifact, opts.Payloads = mustOpen(t, store, from), snapshot.DownloaderPayloads(store, "vm")
	res, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func layersOf(a *snapshot.Artifact) (all []string) {
	for _, d := range a.Manifest.Layers {
		all = append(all, d.Title()+" "+d.MediaType+" "+d.Digest)
	}
	return all
}

// An artifact that went through another format and back is what it was.
func TestConvertBackAndForth(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 7))
	files := []artifacttest.File{
		{Name: "config.json", Data: []byte(`{"cpus":1}`)},
		artifacttest.RandomFile(rng, "cow.raw", 12*mib),
		artifacttest.RandomFile(rng, "memory-ranges", 9*mib),
		{Name: "big.qcow2", Data: pattern(3*mib + 1), Mode: 0o600},
	}
	store := artifacttest.NewStore()
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for format, opts := range map[string]snapshot.PushOptions{"v1": {}, "v2": {Zstd: 1, Chunk: mib}} {
		opts.Name, opts.Tag, opts.Input = "vm", format, bytes.NewReader(export)
		if _, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		opts.Input = nil
		res := convert(t, store, format, format+"-packed", snapshot.PushOptions{Packed: true})
		if res.Format != "packed" {
			t.Errorf("%s became %s", format, res.Format)
		}
		checkPacked(t, store, format+"-packed", files)
		convert(t, store, format+"-packed", format+"-back", opts)
		was, is := mustOpen(t, store, format), mustOpen(t, store, format+"-back")
		if a, b := layersOf(was), layersOf(is); !slices.Equal(a, b) {
			t.Errorf("%s: layers %v became %v", format, a, b)
		}
		if !bytes.Equal(tarOf(t, store, was), tarOf(t, store, is)) {
			t.Errorf("%s: the tar has changed", format)
		}
	}
}

// tarOf writes an artifact as a tar, with the same times for all.
func tarOf(t testing.TB, store *artifacttest.Store, a *snapshot.Artifact) []byte {
	t.Helper()
	same := *a
	same.Created = artifacttest.Created
	var buf bytes.Buffer
	if err := same.WriteTar(t.Context(), &buf, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{}); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
