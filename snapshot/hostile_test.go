package snapshot_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

type edit = func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig)

// meta changes what the config says of cow.raw.
func meta(change func(f *manifest.SnapshotFile)) edit {
	return func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		f := cfg.Files["cow.raw"]
		change(&f)
		cfg.Files["cow.raw"] = f
	}
}

func layer(change func(d *manifest.Descriptor)) edit {
	return func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { change(&m.Layers[0]) }
}

func rename(title string) edit {
	return func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		m.Layers[0].Annotations = map[string]string{manifest.AnnotationTitle: title}
		cfg.Files[title] = cfg.Files["cow.raw"]
		delete(cfg.Files, "cow.raw")
	}
}

func pieces(size int64, sums int) edit {
	return func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		cfg.Pieces = map[string]manifest.SnapshotPieces{"cow.raw": {Size: size, SHA256: make([]byte, sums)}}
	}
}

// hostile is what must be refused in a snapshot of one file, cow.raw of
// 16 bytes, in either format.
func hostile() map[string]edit {
	all := map[string]edit{
		"no layers":           func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers = nil },
		"no title":            layer(func(d *manifest.Descriptor) { d.Annotations = nil }),
		"no digest":           layer(func(d *manifest.Descriptor) { d.Digest = "" }),
		"sha512":              layer(func(d *manifest.Descriptor) { d.Digest = "sha512:" + strings.Repeat("0", 128) }),
		"a digest of a path":  layer(func(d *manifest.Descriptor) { d.Digest = "sha256:../" + strings.Repeat("0", 61) }),
		"upper-case digest":   layer(func(d *manifest.Descriptor) { d.Digest = "sha256:" + strings.Repeat("A", 64) }),
		"negative size":       layer(func(d *manifest.Descriptor) { d.Size = -16 }),
		"size of 2^62":        layer(func(d *manifest.Descriptor) { d.Size = 1 << 62 }),
		"an empty blob":       layer(func(d *manifest.Descriptor) { d.Size = 0 }),
		"gzip":                layer(func(d *manifest.Descriptor) { d.MediaType += "+gzip" }),
		"negative mode":       meta(func(f *manifest.SnapshotFile) { f.Mode = -1 }),
		"size without a map":  meta(func(f *manifest.SnapshotFile) { f.SparseSize = 32 }),
		"another schema":      func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.SchemaVersion = "v9" },
		"file without layer":  func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.Files["x"] = manifest.SnapshotFile{} },
		"unknown chunk":       meta(func(f *manifest.SnapshotFile) { f.Chunks = []string{"sha256:" + strings.Repeat("1", 64)} }),
		"envelope not JSON":   envelope("{"),
		"envelope of a list":  envelope("[]"),
		"envelope no config":  envelope(`{"version":1}`),
		"envelope's config":   envelope(`{"config":[]}`),
		"envelope, then text": envelope(`{"config":{}} {}`),
		"envelope of 1 MiB":   envelope(`{"config":{"name":"` + strings.Repeat("x", 1<<20) + `"}}`),
		"one title twice": func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) {
			m.Layers = append(m.Layers, m.Layers[0])
		},
		"two sizes of a blob": func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) {
			d := m.Layers[0]
			d.Size++
			d.Annotations = map[string]string{manifest.AnnotationTitle: "other"}
			m.Layers = append(m.Layers, d)
		},
		"two types of a blob": func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) {
			d := m.Layers[0]
			d.MediaType = manifest.MediaTypeGeneric
			m.Layers = append(m.Layers, d)
		},
	}
	for what, size := range map[string]func(cfg *manifest.SnapshotConfig, d *manifest.Descriptor){
		"data": func(_ *manifest.SnapshotConfig, d *manifest.Descriptor) { d.Size = 1 << 50 },
		"size": func(cfg *manifest.SnapshotConfig, d *manifest.Descriptor) {
			cfg.Files[d.Title()] = manifest.SnapshotFile{SparseMap: `[{"o":0,"l":16}]`, SparseSize: 1 << 50}
		},
	} {
		all["sums that overflow: "+what] = func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			for i := range 1<<13 + 1 {
				d := m.Layers[0]
				d.Digest = fmt.Sprintf("sha256:%064x", i)
				d.Annotations = map[string]string{manifest.AnnotationTitle: fmt.Sprint("f", i)}
				size(cfg, &d)
				m.Layers = append(m.Layers, d)
			}
		}
	}
	for _, title := range []string{
		"", ".", "..", "../x", "/etc/passwd", "a/b", "a\x00b", "a\nb", "\x1b[31mred", "a\u202eb", "a\u0085", "\x7f",
		"snapshot.json", strings.Repeat("x", 256),
	} {
		all[fmt.Sprintf("title %.20q", title)] = rename(title)
	}
	for _, m := range []struct {
		text string
		size int64
	}{
		{`[{"o":0,"l":9},{"o":8,"l":7}]`, 32}, {`[{"o":8,"l":8},{"o":0,"l":8}]`, 32}, {`[{"o":-1,"l":16}]`, 32},
		{`[{"o":17,"l":16}]`, 32}, {fmt.Sprintf(`[{"o":%d,"l":16}]`, math.MaxInt64-8), 32}, {`[{"o":0,"l":15}]`, 32},
		{`[{"o":0,"l":17}]`, 32}, {`[{"o":0,"l":16}]`, 1 << 62}, {`[{"o":0,"l":16}]`, 0}, {`[{"o":0,"l":16}]`, -1},
		{`x`, 32}, {`[]`, 32}, {`null`, 32}, {`[{"o":0,"l":9223372036854775807},{"o":0,"l":9223372036854775807},{"o":0,"l":18}]`, 32},
	} {
		all[fmt.Sprintf("map %s of %d", m.text, m.size)] = meta(func(f *manifest.SnapshotFile) { f.SparseMap, f.SparseSize = m.text, m.size })
	}
	return all
}

func envelope(text string) edit {
	return func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.Envelope = &text }
}

func cow() []artifacttest.File {
	return []artifacttest.File{{Name: "cow.raw", Data: []byte("0123456789abcdef")}}
}

func refused(t *testing.T, name string, a *artifacttest.Artifact) {
	t.Helper()
	_, store, err := load(t, a)
	if !errors.Is(err, layout.ErrContent) {
		t.Errorf("%s: Load: %v", name, err)
		return
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u202e' || r == 0x85 }) {
		t.Errorf("%s: the error carries it to the terminal: %q", name, err)
	}
	var out bytes.Buffer
	err = snapshot.Stream(t.Context(), a.Manifest, store, snapshot.StreamOptions{Name: "vm", Writer: &out})
	if !errors.Is(err, layout.ErrContent) || out.Len() != 0 {
		t.Errorf("%s: Stream: %d bytes, %v", name, out.Len(), err)
	}
}

func TestHostileArtifactsAreRefused(t *testing.T) {
	tier.Long(t, "loads and streams hundreds of artifacts")
	for name, e := range hostile() {
		refused(t, name+", v1", artifacttest.Snapshot(cow(), artifacttest.Options{Edit: e}))
		refused(t, name+", v2", artifacttest.Snapshot(cow(), artifacttest.Options{V2: true, Edit: e}))
	}
	for name, e := range map[string]edit{
		"zstd": layer(func(d *manifest.Descriptor) { d.MediaType += manifest.SuffixZstd }),
		"chunks": func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			meta(func(f *manifest.SnapshotFile) { f.Chunks = []string{m.Layers[0].Digest} })(m, cfg)
		},
		"another size":      meta(func(f *manifest.SnapshotFile) { f.Size = 17 }),
		"pieces of nothing": pieces(0, 32),
		"tiny pieces":       pieces(1, 16*32),
		"odd pieces":        pieces(300<<10, 32),
		"negative pieces":   pieces(-1<<63, 32),
		"huge pieces":       pieces(1<<62, 32),
		"too few sums":      pieces(256<<10, 31),
		"too many sums":     pieces(256<<10, 64),
		"no sums":           pieces(256<<10, 0),
		"pieces of others": func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			cfg.Pieces = map[string]manifest.SnapshotPieces{"x": {Size: 256 << 10, SHA256: make([]byte, 32)}}
		},
		"schema v2": func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.SchemaVersion = "v2" },
	} {
		refused(t, "v1 with "+name, artifacttest.Snapshot(cow(), artifacttest.Options{Edit: e}))
	}
	for name, e := range map[string]edit{
		"schema v1":     func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.SchemaVersion = "v1" },
		"no size":       meta(func(f *manifest.SnapshotFile) { f.Size = 0 }),
		"negative size": meta(func(f *manifest.SnapshotFile) { f.Size = -1 }),
		"size of 2^62":  meta(func(f *manifest.SnapshotFile) { f.Size = 1 << 62 }),
		"another size":  meta(func(f *manifest.SnapshotFile) { f.Size = 17 }),
		"unknown type":  layer(func(d *manifest.Descriptor) { d.MediaType = "application/x-lz4" }),
		"one chunk twice": func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			meta(func(f *manifest.SnapshotFile) { f.Chunks = []string{m.Layers[0].Digest, m.Layers[0].Digest} })(m, cfg)
		},
	} {
		refused(t, "v2 with "+name, artifacttest.Snapshot(cow(), artifacttest.Options{V2: true, Edit: e}))
	}
}

// Chunk lists that do not fit the file.
func TestHostileChunks(t *testing.T) {
	three := []artifacttest.File{{Name: "memory-ranges", Data: pattern(3*mib - 5)}, {Name: "x.raw", Data: []byte("x")}}
	change := func(f func(m *manifest.OCIManifest, f *manifest.SnapshotFile)) edit {
		return func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			meta := cfg.Files["memory-ranges"]
			f(m, &meta)
			cfg.Files["memory-ranges"] = meta
		}
	}
	for name, e := range map[string]edit{
		"one missing": change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Chunks = f.Chunks[:2] }),
		"one more":    change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Chunks = append(f.Chunks, f.Chunks[2]) }),
		"swapped": change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) {
			f.Chunks[0], f.Chunks[2] = f.Chunks[2], f.Chunks[0]
		}),
		"a foreign":    change(func(m *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Chunks[1] = m.Layers[3].Digest }),
		"size more":    change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Size++ }),
		"size of none": change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Size = 2 }),
		"no list":      change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Chunks = nil }),
		"a bad digest": change(func(_ *manifest.OCIManifest, f *manifest.SnapshotFile) { f.Chunks[0] = "\x1b[2J" }),
	} {
		refused(t, name, artifacttest.Snapshot(three, artifacttest.Options{Chunk: mib, Edit: e}))
	}
}

func TestHostileCloudImages(t *testing.T) {
	for name, change := range map[string]func(m *manifest.OCIManifest){
		"no disk":     func(m *manifest.OCIManifest) { m.Layers = m.Layers[:1] },
		"two formats": func(m *manifest.OCIManifest) { m.Layers[1].MediaType = manifest.MediaTypeDiskRawPart },
		"one title":   func(m *manifest.OCIManifest) { m.Layers[1].Annotations = m.Layers[2].Annotations },
		"no titles":   func(m *manifest.OCIManifest) { m.Layers[1].Annotations, m.Layers[2].Annotations = nil, nil },
		"a path": func(m *manifest.OCIManifest) {
			m.Layers[2].Annotations[manifest.AnnotationTitle] = "../x.qcow2.part.aa"
		},
		"negative size": func(m *manifest.OCIManifest) { m.Layers[1].Size = -1 },
		"too large":     func(m *manifest.OCIManifest) { m.Layers[1].Size, m.Layers[2].Size = 1<<50, 1<<50 },
		"a bad digest":  func(m *manifest.OCIManifest) { m.Layers[1].Digest = "sha256:x" },
	} {
		a := artifacttest.CloudImage("w.qcow2", []byte("one"), []byte("two"))
		m, err := manifest.Parse(a.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		change(m)
		store := artifacttest.NewStore()
		if err := store.PutManifest(t.Context(), "vm", "latest", mustJSON(t, m), ""); err != nil {
			t.Fatal(err)
		}
		if _, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Setuid, type and sticky bits are dropped; a file that the config does
// not know gets a careful mode.
func TestModes(t *testing.T) {
	for mode, want := range map[int64]uint32{0o644: 0o644, 0o107777: 0o777, 0o4755: 0o755, 0o120777: 0o777, 0: 0o640} {
		art, _ := mustLoad(t, artifacttest.Snapshot(cow(), artifacttest.Options{Edit: meta(func(f *manifest.SnapshotFile) { f.Mode = mode })}))
		if art.Files[0].Mode != want {
			t.Errorf("%o became %o", mode, art.Files[0].Mode)
		}
	}
}

func TestWrongBytesOfManifestAndConfig(t *testing.T) {
	a := artifacttest.Snapshot(cow(), artifacttest.Options{})
	store := artifacttest.NewStore()
	store.Add("vm", "latest", a)
	for name, corrupt := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"shorter": func(b []byte) []byte { return b[:len(b)-1] },
		"longer":  func(b []byte) []byte { return append(b, '\n') },
		"empty":   func([]byte) []byte { return nil },
		"endless": func(b []byte) []byte { return append(b, make([]byte, 10<<20)...) },
	} {
		store.Corrupt = func(_ string, b []byte) []byte { return corrupt(b) }
		if _, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
			t.Errorf("config %s: %v", name, err)
		}
	}
	store.Corrupt = nil
	other := artifacttest.Snapshot(cow(), artifacttest.Options{V2: true})
	store.Add("vm", a.Digest(), other) // the registry lies about what it has under this digest
	if _, err := snapshot.Load(t.Context(), store, "vm", a.Digest(), snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
		t.Errorf("manifest of another digest: %v", err)
	}
	store.Add("vm", "latest", &artifacttest.Artifact{Manifest: make([]byte, snapshot.MaxManifest+1)})
	if _, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); !errors.Is(err, layout.ErrContent) {
		t.Errorf("manifest of more than 4 MiB: %v", err)
	}
	if _, err := snapshot.Load(t.Context(), store, "vm", "absent", snapshot.LoadOptions{}); !errors.Is(err, os.ErrNotExist) || errors.Is(err, layout.ErrContent) {
		t.Errorf("no manifest: %v", err)
	}
	big := manifest.Descriptor{MediaType: manifest.MediaTypeSnapshotConfig, Digest: a.Digest(), Size: snapshot.MaxConfig + 1}
	if _, err := snapshot.FetchSnapshotConfig(t.Context(), store, "vm", big); !errors.Is(err, layout.ErrContent) {
		t.Errorf("config of more than 64 MiB: %v", err)
	}
}

// A payload says io.EOF only when all of it was right.
func TestWrongBytesOfPayload(t *testing.T) {
	for form, o := range map[string]artifacttest.Options{"v1": {}, "zstd": {Zstd: true}, "chunks": {Chunk: mib, Zstd: true}, "raw chunks": {Chunk: mib}} {
		art, store := mustLoad(t, artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: pattern(3*mib - 9)}}, o))
		f := art.Files[0]
		for name, corrupt := range map[string]func([]byte) []byte{
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"last":    func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			"shorter": func(b []byte) []byte { return b[:len(b)-1] },
			"longer":  func(b []byte) []byte { return append(b, 0) },
			"empty":   func([]byte) []byte { return nil },
		} {
			last := f.Parts[len(f.Parts)-1].Digest
			store.Corrupt = func(d string, b []byte) []byte {
				if d == last {
					return corrupt(b)
				}
				return b
			}
			r, err := snapshot.DownloaderPayloads(store, "vm").OpenPayload(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			r.Close()
			if !errors.Is(err, layout.ErrContent) || int64(len(data)) > f.PayloadSize() {
				t.Errorf("%s, %s: %d bytes, %v", form, name, len(data), err)
			}
		}
	}
}
