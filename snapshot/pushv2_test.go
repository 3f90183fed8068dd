package snapshot_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// oddEnvelope has keys, numbers and values that nobody here knows.
const oddEnvelope = "{\n  \"version\" : 1,\t\"config\": {\"name\":\"odd\", \"id\":\"X\", \"future\":{\"b\":[1e400,-0.0],\"a\":null}," +
	" \"big\":12345678901234567890123, \"description\":\"\\u00e4\\/\", \"nic_mtus\":[9000] },\n \"files\":[%s], \"z\":true}\n\n"

// fragments is a map whose text passes 800 KiB.
func fragments(t testing.TB, n int64) *sparse.Map {
	segs := make([]sparse.Segment, n)
	for i := range segs {
		segs[i] = sparse.Segment{Offset: int64(i) * 96, Length: 64 + int64(i%7)}
	}
	m, err := sparse.New(segs, n*96)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Text()) < 800<<10 {
		t.Fatalf("the map has %d bytes", len(m.Text()))
	}
	return m
}

// roundTripFiles are files of all sorts and sizes.
func roundTripFiles(t testing.TB, rng *rand.Rand) []artifacttest.File {
	big := fragments(t, 42000)
	spread := make([]byte, big.Size())
	for _, s := range big.Segments() {
		artifacttest.FillBits(spread[s.Offset:s.Offset+s.Length], rng.Uint64(), 15)
	}
	files := []artifacttest.File{
		{Name: "zzz first.bin", Data: pattern(3*mib + 17), Mode: 0o400},
		{Name: "cow.raw", Data: spread, Map: big, Mode: 0o600},
		artifacttest.RandomFile(rng, "memory-ranges", 9*mib),
		{Name: "empty", Mode: 0o640},
		{Name: "state.json", Data: []byte("{}")},
		{Name: "just.qcow2", Data: pattern(mib)},
		{Name: "under.raw", Data: pattern(mib - 1)},
		{Name: "zeros.raw", Data: make([]byte, 17*mib+5)},
	}
	return files
}

func envelopeOf(files []artifacttest.File) string {
	var names []string
	for i := range files {
		names = append(names, fmt.Sprintf("%q", files[i].Name))
	}
	return fmt.Sprintf(oddEnvelope, strings.Join(names, ","))
}

var formats = map[string]snapshot.PushOptions{
	"v1":           {},
	"zstd":         {Zstd: 3},
	"zstd 2 MiB":   {Zstd: 1, Chunk: 2 * mib},
	"raw chunks":   {Chunk: mib},
	"streams":      {Zstd: 1, Chunk: 16 * mib, Memory: 96 << 20},
	"large chunks": {Zstd: 1, Chunk: 512 * mib},
	"large raw":    {Chunk: 1024 * mib},
}

// Nothing is lost on the way up and down, in any form, whatever way the
// tar comes in and the blobs go out.
func TestPushRoundTrip(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	files := roundTripFiles(t, rng)
	env := envelopeOf(files)
	export := artifacttest.Tar(env, files)
	for form, opts := range formats {
		for how, input := range inputs(export) {
			for kind := range uploaders(artifacttest.NewStore()) {
				if kind == "plain" && (how == "file" || form != "v1" && form != "streams") {
					continue // no other way than with the stream
				}
				t.Run(form+", "+how+" to "+kind, func(t *testing.T) {
					if how == "file" && form != "v1" && form != "streams" {
						tier.Long(t, "pushes in every form")
					}
					t.Parallel()
					opts := opts
					store := artifacttest.NewStore()
					opts.Name, opts.Input, opts.SpoolDir = "vm", input(), t.TempDir()
					res, err := (&snapshot.Pusher{Uploader: uploaders(store)[kind]}).Push(t.Context(), opts)
					if err != nil {
						t.Fatal(err)
					}
					if how == "file" {
						checkSame(t, store, env, files)
					} else {
						checkStored(t, store, env, files)
					}
					checkV2(t, store, res)
				})
			}
		}
	}
}

// checkSame compares what is stored, and the tar that is made of it.
func checkSame(t *testing.T, store *artifacttest.Store, env string, files []artifacttest.File) {
	t.Helper()
	checkStored(t, store, env, files)
	got, names := untarred(t, store, "vm", "latest")
	for i := range files {
		if names[i+1] != files[i].Name || !bytes.Equal(got[files[i].Name].Data, files[i].Data) {
			t.Errorf("%s in the tar is %s, or has other bytes", files[i].Name, names[i+1])
		}
	}
}

func checkStored(t *testing.T, store *artifacttest.Store, env string, files []artifacttest.File) {
	t.Helper()
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if string(art.Envelope) != env {
		t.Errorf("envelope %s", art.Envelope)
	}
	if len(art.Files) != len(files) {
		t.Fatalf("%d files", len(art.Files))
	}
	for i, f := range art.Files {
		want := &files[i]
		if f.Name != want.Name || want.Mode != 0 && int64(f.Mode) != want.Mode {
			t.Errorf("%s has mode %o, want %s, %o", f.Name, f.Mode, want.Name, want.Mode)
		}
		if want.Map != nil && f.MapText != want.Map.Text() || want.Map == nil && f.MapText != "" {
			t.Errorf("%s has another map", f.Name)
		}
		if !holds(t, snapshot.DownloaderPayloads(store, "vm"), f, want.Data) {
			t.Errorf("%s has other bytes", f.Name)
		}
	}
}

// checkV2 looks at what others rely on: types, annotations, headers, and
// that a chunk is no larger than the upstream reader takes.
func checkV2(t *testing.T, store *artifacttest.Store, res *snapshot.PushResult) {
	t.Helper()
	m, err := manifest.Parse(res.ManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	var cfg manifest.SnapshotConfig
	if err := json.Unmarshal(store.Blob(m.Config.Digest), &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.SchemaVersion != res.Format || strings.Contains(m.ArtifactType, ".v2+") != (res.Format == "v2") || (cfg.Pieces != nil) != (res.Format == "v1") {
		t.Errorf("%s: artifact type %s, schema %s, %d pieces", res.Format, m.ArtifactType, cfg.SchemaVersion, len(cfg.Pieces))
	}
	seen := map[string]int{}
	for _, l := range m.Layers {
		meta, i := cfg.Files[l.Title()], seen[l.Title()]
		seen[l.Title()]++
		decoded := l.Size
		if strings.HasSuffix(l.MediaType, "+zstd") {
			var ok bool
			if decoded, ok = zstdframe.ContentSize(store.Blob(l.Digest)); !ok || meta.Size < mib {
				t.Errorf("%s: chunk %d of %d bytes without content size", l.Title(), i, decoded)
			}
		}
		if res.Format == "v1" {
			continue
		}
		n := int64(len(meta.Chunks))
		if n == 0 && decoded != meta.Size {
			t.Errorf("%s: %d bytes in a layer, %d in the config", l.Title(), decoded, meta.Size)
		}
		if n == 0 {
			continue
		}
		if meta.Chunks[i] != l.Digest || l.Annotations["cocoonstack.chunk.index"] != fmt.Sprint(i) || l.Annotations["cocoonstack.chunk.count"] != fmt.Sprint(n) {
			t.Errorf("%s: chunk %d is %v", l.Title(), i, l)
		}
		if most := (meta.Size-1)/(n-1) + 1; decoded > most {
			t.Errorf("%s: chunk of %d bytes, readers take %d", l.Title(), decoded, most)
		}
	}
}

// What uses nothing of v2 is v1, byte for byte.
func TestPushSmallFilesInV2(t *testing.T) {
	export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{
		{Name: "cow.raw", Data: pattern(mib - 1)}, {Name: "state.json", Data: []byte("{}")},
	})
	var docs []string
	for _, opts := range []snapshot.PushOptions{{}, {Zstd: 3}, {Zstd: 3, Chunk: mib}, {Chunk: 4 * mib}} {
		store := artifacttest.NewStore()
		opts.Name, opts.Input = "vm", bytes.NewReader(export)
		res, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Parse(res.ManifestBytes)
		if err != nil {
			t.Fatal(err)
		}
		var cfg map[string]any
		if err := json.Unmarshal(store.Blob(m.Config.Digest), &cfg); err != nil {
			t.Fatal(err)
		}
		cfg["createdAt"], m.Annotations, m.Config = "", nil, manifest.Descriptor{}
		docs = append(docs, string(mustJSON(t, cfg))+string(mustJSON(t, m)))
	}
	for _, d := range docs[1:] {
		if d != docs[0] {
			t.Errorf("%s\nis not\n%s", d, docs[0])
		}
	}
}

// Chunks of equal content are sent once, and a second push sends what
// changed.
func TestPushSendsChunksOnce(t *testing.T) {
	data := pattern(12 * mib)
	copy(data[4*mib:], data[:4*mib])
	export := func() io.Reader {
		return bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "a.raw", Data: data}, {Name: "b.raw", Data: data}}))
	}
	for _, opts := range []snapshot.PushOptions{{Zstd: 3, Chunk: mib}, {Chunk: mib}} {
		store := artifacttest.NewStore()
		p := &snapshot.Pusher{Uploader: store}
		opts.Name, opts.Input = "vm", export()
		dry := opts
		dry.DryRun = true
		would, err := p.Push(t.Context(), dry)
		if err != nil {
			t.Fatal(err)
		}
		if store.Calls("PutBlob")+store.Calls("UploadBlob")+store.Calls("PutManifest") != 0 {
			t.Error("a dry run sends something")
		}
		opts.Input = export()
		first, err := p.Push(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if n := store.Calls("PutBlob"); n != 8+1 || first.LayerCount != 24 {
			t.Errorf("%d blobs, %d layers", n, first.LayerCount)
		}
		if first.SentBytes >= first.TotalSize || first.ThereBytes != 0 || abs(would.SentBytes-first.SentBytes) > 64 {
			t.Errorf("sent %d of %d, a dry run says %d", first.SentBytes, first.TotalSize, would.SentBytes)
		}
		data[9*mib] ^= 1
		before := store.Calls("PutBlob")
		opts.Input = export()
		second, err := p.Push(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		data[9*mib] ^= 1
		if n := store.Calls("PutBlob") - before; n != 2 || opts.Zstd == 0 && second.SentBytes > first.SentBytes/4 || second.ThereBytes == 0 {
			t.Errorf("%d blobs, %d bytes sent again", n, second.SentBytes)
		}
	}
}

func abs(n int64) int64 { return max(n, -n) }

// mounting is a registry that keeps repositories apart.
type mounting struct {
	*artifacttest.Store
	other *artifacttest.Store
	asked atomic.Int64
}

func (m *mounting) BlobExists(ctx context.Context, name, digest string) (bool, error) {
	if name == "base" {
		return m.other.BlobExists(ctx, name, digest)
	}
	return m.Store.BlobExists(ctx, name, digest)
}

func (m *mounting) MountBlob(ctx context.Context, name, digest, from string) (bool, error) {
	m.asked.Add(1)
	data := m.other.Blob(digest)
	if data == nil || from != "base" {
		return false, nil
	}
	return true, m.Store.PutBlob(ctx, name, digest, bytes.NewReader(data), int64(len(data)))
}

func TestPushMounts(t *testing.T) {
	for _, opts := range []snapshot.PushOptions{{}, {Zstd: 1, Chunk: mib}} {
		export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "cow.raw", Data: pattern(5 * mib)}})
		base := artifacttest.NewStore()
		opts.Name, opts.Input = "base", bytes.NewReader(export)
		if _, err := (&snapshot.Pusher{Uploader: base}).Push(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		reg := &mounting{Store: artifacttest.NewStore(), other: base}
		opts.Name, opts.Input, opts.MountFrom = "vm", bytes.NewReader(export), "base"
		dry := opts
		dry.DryRun = true
		would, err := (&snapshot.Pusher{Uploader: reg}).Push(t.Context(), dry)
		if err != nil || reg.asked.Load() != 0 {
			t.Fatal(err, reg.asked.Load())
		}
		opts.Input = bytes.NewReader(export)
		res, err := (&snapshot.Pusher{Uploader: reg}).Push(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if reg.asked.Load() == 0 || res.SentBytes > 4096 || res.ThereBytes == 0 || would.ThereBytes != res.ThereBytes {
			t.Errorf("%+v", res)
		}
		checkSame(t, reg.Store, artifacttest.Envelope, []artifacttest.File{{Name: "cow.raw", Data: pattern(5 * mib)}})
	}
}

func TestPushOptionsThatAreWrong(t *testing.T) {
	for _, opts := range []snapshot.PushOptions{
		{Zstd: -1}, {Zstd: 23}, {Chunk: -mib}, {Chunk: mib + 1}, {Chunk: 1}, {Memory: 1}, {Memory: -1}, {Concurrency: -1},
	} {
		store := artifacttest.NewStore()
		opts.Name, opts.Input = "vm", bytes.NewReader(nil)
		if _, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts); err == nil || strings.Contains(err.Error(), layout.ErrContent.Error()) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}
