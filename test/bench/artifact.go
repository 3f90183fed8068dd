package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// form says how an artifact is stored.
type form struct {
	pieces bool  // v1 with digests of its pieces
	chunk  int64 // v2: zstd frames of this many bytes; 0: v1
}

const envelope = `{"version":1,"config":{"id":"BENCHMARK","name":"bench","cpu":4}}` + "\n"

// repo is the repository of all artifacts; they are told apart by tag.
const repo = "bench/vm"

// writer puts artifacts into a registry. Blobs that are there are not
// made again.
type writer struct {
	addr  string              // of the registry
	blobs map[string]madeBlob // by payload and form
	used  map[string]bool     // digests of those that the current row has asked for
}

// madeBlob is what is known of a payload that was uploaded.
type madeBlob struct {
	blobs []storedBlob
	sums  []byte // of its pieces
}

type storedBlob struct {
	digest string
	size   int64
}

// push writes one artifact with small files of a VM beside the datasets.
func (w *writer) push(ctx context.Context, tag string, f form, sets ...*dataset) error {
	m := &manifest.OCIManifest{
		SchemaVersion: 2, MediaType: manifest.MediaTypeOCIManifest, ArtifactType: manifest.ArtifactTypeSnapshot,
		Annotations: map[string]string{manifest.AnnotationCreated: "2026-01-01T00:00:00Z"},
	}
	text := envelope
	cfg := &manifest.SnapshotConfig{
		SchemaVersion: "v1", SnapshotID: "BENCHMARK", CPU: 4, Envelope: &text,
		Files: map[string]manifest.SnapshotFile{}, CreatedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	if f.chunk > 0 {
		m.ArtifactType, cfg.SchemaVersion = manifest.ArtifactTypeSnapshotV2, "v2"
	}
	if err := w.smallFiles(ctx, m, cfg); err != nil {
		return err
	}
	for _, d := range sets {
		if err := w.dataset(ctx, f, d, m, cfg); err != nil {
			return err
		}
	}
	return w.manifest(ctx, tag, m, cfg)
}

// smallFiles adds the two files that every snapshot has.
func (w *writer) smallFiles(ctx context.Context, m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) error {
	for name, size := range map[string]int{"config.json": 2 << 10, "state.json": 150 << 10} {
		data := bytes.Repeat([]byte(`{"vm":"bench"}`+"\n"), size/15)
		desc := layer(name, stored(data), "")
		m.Layers = append(m.Layers, desc)
		meta := manifest.SnapshotFile{Mode: 0o644}
		if cfg.SchemaVersion == "v2" {
			meta.Size = desc.Size
		}
		cfg.Files[name] = meta
		if err := w.blob(ctx, desc.Digest, data); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) dataset(ctx context.Context, f form, d *dataset, m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) error {
	made, err := w.payload(ctx, f.chunk, d)
	if err != nil {
		return err
	}
	meta := manifest.SnapshotFile{Mode: 0o644, SparseMap: d.m.Text(), SparseSize: d.m.Size()}
	if f.chunk > 0 {
		meta.Size = d.m.DataSize()
	}
	for _, blob := range made.blobs {
		suffix := ""
		if f.chunk > 0 {
			suffix = manifest.SuffixZstd
			meta.Chunks = append(meta.Chunks, blob.digest)
		}
		m.Layers = append(m.Layers, layer(d.name, blob, suffix))
	}
	if f.pieces {
		if cfg.Pieces == nil {
			cfg.Pieces = map[string]manifest.SnapshotPieces{}
		}
		cfg.Pieces[d.name] = manifest.SnapshotPieces{Size: pieceBytes, SHA256: made.sums}
	}
	cfg.Files[d.name] = meta
	return nil
}

// payload uploads a dataset's payload in frames of chunk bytes, or raw,
// unless it is there.
func (w *writer) payload(ctx context.Context, chunk int64, d *dataset) (made madeBlob, err error) {
	defer func() {
		for _, b := range made.blobs {
			w.used[b.digest] = true
		}
	}()
	key := fmt.Sprint(d.seed, d.m.DataSize(), chunk)
	if made, ok := w.blobs[key]; ok {
		return made, nil
	}
	if chunk > 0 {
		made, err = w.chunks(ctx, chunk, d)
	} else {
		made, err = w.raw(ctx, d)
	}
	if err == nil {
		w.blobs[key] = made
	}
	return made, err
}

// pieceBytes is the smallest size of pieces with digests. All datasets of
// an artifact together stay below what digests may take at this size.
const pieceBytes = 256 << 10

// raw uploads a payload as one blob.
func (w *writer) raw(ctx context.Context, d *dataset) (madeBlob, error) {
	data := make([]byte, d.m.DataSize())
	var made madeBlob
	made.sums = make([]byte, (len(data)+pieceBytes-1)/pieceBytes*sha256.Size)
	err := parallel(ctx, len(made.sums)/sha256.Size, func(_ context.Context, i int) error {
		off := i * pieceBytes
		p := data[off:min(off+pieceBytes, len(data))]
		d.fill(p, int64(off))
		sum := sha256.Sum256(p)
		copy(made.sums[i*sha256.Size:], sum[:])
		return nil
	})
	if err != nil {
		return made, err
	}
	made.blobs = []storedBlob{stored(data)}
	return made, w.blob(ctx, made.blobs[0].digest, data)
}

// chunks uploads a payload as zstd frames.
func (w *writer) chunks(ctx context.Context, size int64, d *dataset) (madeBlob, error) {
	n := int((d.m.DataSize() + size - 1) / size)
	made := madeBlob{blobs: make([]storedBlob, n)}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return made, err
	}
	defer enc.Close()
	err = parallel(ctx, n, func(ctx context.Context, i int) error {
		off := int64(i) * size
		data := make([]byte, min(size, d.m.DataSize()-off))
		d.fill(data, off)
		frame := enc.EncodeAll(data, make([]byte, 0, len(data)/2))
		made.blobs[i] = stored(frame)
		return w.blob(ctx, made.blobs[i].digest, frame)
	})
	return made, err
}

// parallel calls f for 0..n-1 on all processors.
func parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i := range n {
		g.Go(func() error { return f(ctx, i) })
	}
	return g.Wait()
}

func layer(name string, blob storedBlob, suffix string) manifest.Descriptor {
	return manifest.Descriptor{
		MediaType:   manifest.MediaTypeForCocoonFile(name) + suffix,
		Digest:      blob.digest,
		Size:        blob.size,
		Annotations: map[string]string{manifest.AnnotationTitle: name},
	}
}

func stored(data []byte) storedBlob { return storedBlob{digests.Of(data), int64(len(data))} }

// blob uploads data in one go.
func (w *writer) blob(ctx context.Context, digest string, data []byte) error {
	to, err := session(ctx, w.addr, repo)
	if err != nil {
		return err
	}
	return finishSession(ctx, to, digest, bytes.NewReader(data), int64(len(data)))
}

// put stores a manifest.
func (w *writer) put(ctx context.Context, url, contentType string, body *bytes.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := plainClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("put %s: %s: %s", url, resp.Status, text)
	}
	return nil
}
