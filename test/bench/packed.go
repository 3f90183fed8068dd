package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// largeGranule is the granule size of large files, in bytes.
const largeGranule = 64 << 10

// prepareLarge makes sure that the registry has a packed file of that
// size, all data, which repeats what a section of its index is of: so every
// section has the size that one of different granules has.
func (b *bench) prepareLarge(ctx context.Context, tag string, size int64) error {
	if b.pushed[tag] {
		return nil
	}
	enc, err := zstdframe.NewEncoder(1, 2)
	if err != nil {
		return err
	}
	granules, packs, err := b.largePacks(ctx, enc)
	if err != nil {
		return err
	}
	w := packed.NewWriter(largeGranule, enc)
	for slot := range size / largeGranule {
		if err := w.Add(slot, granules[slot%packed.SectionSlots]); err != nil {
			return err
		}
	}
	index, head, err := w.Finish(sparse.Dense(size), packs)
	if err != nil {
		return err
	}
	if err := b.writer.blob(ctx, digests.Of(index), index); err != nil {
		return err
	}
	if err := b.writer.pushIndex(ctx, tag, size, index, head, packs); err != nil {
		return err
	}
	b.pushed[tag] = true
	return nil
}

// largePacks uploads the granules of one section.
func (b *bench) largePacks(ctx context.Context, enc *zstdframe.Encoder) ([]packed.Granule, []packed.Pack, error) {
	if b.section != nil {
		return b.section, b.sectionPacks, nil
	}
	const perPack = packed.SectionSlots / 8
	granules := make([]packed.Granule, packed.SectionSlots)
	packs := make([]packed.Pack, packed.SectionSlots/perPack)
	err := parallel(ctx, len(packs), func(ctx context.Context, i int) error {
		data := make([]byte, largeGranule)
		var blob []byte
		for k := i * perPack; k < (i+1)*perPack; k++ {
			for at := 0; at < len(data); at += pageSize {
				fillPage(data[at:at+pageSize], mix(uint64(k*len(data)+at)))
			}
			frame := enc.Encode(nil, data)
			granules[k] = packed.Granule{Pack: i, Offset: int64(len(blob)), Stored: int64(len(frame)), Sum: sha256.Sum256(data)}
			blob = append(blob, frame...)
		}
		packs[i] = packed.Pack{Digest: sha256.Sum256(blob), Size: int64(len(blob))}
		return b.writer.blob(ctx, digests.Of(blob), blob)
	})
	if err == nil {
		b.section, b.sectionPacks = granules, packs
	}
	return granules, packs, err
}

// pushIndex writes the artifact of a packed file whose index and packs are
// there.
func (w *writer) pushIndex(ctx context.Context, tag string, size int64, index []byte, head int, packs []packed.Pack) error {
	m := &manifest.OCIManifest{
		SchemaVersion: 2, MediaType: manifest.MediaTypeOCIManifest, ArtifactType: manifest.ArtifactTypePacked,
		Annotations: map[string]string{manifest.AnnotationCreated: "2026-01-01T00:00:00Z"},
	}
	text := envelope
	cfg := &manifest.SnapshotConfig{
		SchemaVersion: "packed", SnapshotID: "BENCHMARK", CPU: 4, Envelope: &text,
		Files: map[string]manifest.SnapshotFile{}, CreatedAt: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	if err := w.smallFiles(ctx, m, cfg); err != nil {
		return err
	}
	cfg.Files[memoryTitle] = manifest.SnapshotFile{Mode: 0o600, Size: size, Index: &manifest.SnapshotIndex{
		Digest: digests.Of(index), Size: int64(len(index)), Granule: largeGranule,
		Head: manifest.IndexHead{Digest: digests.Of(index[len(index)-head:]), Size: int64(head)},
	}}
	m.Layers = append(m.Layers, manifest.Descriptor{
		MediaType: manifest.MediaTypeIndex, Digest: digests.Of(index), Size: int64(len(index)),
		Annotations: map[string]string{manifest.AnnotationTitle: memoryTitle},
	})
	for _, p := range packs {
		m.Layers = append(m.Layers, manifest.Descriptor{MediaType: manifest.MediaTypePack, Digest: digests.Format(p.Digest), Size: p.Size})
	}
	return w.manifest(ctx, tag, m, cfg)
}

// manifest uploads an artifact's config blob and manifest.
func (w *writer) manifest(ctx context.Context, tag string, m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) error {
	raw, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	m.Config = manifest.Descriptor{MediaType: manifest.MediaTypeSnapshotConfig, Digest: digests.Of(raw), Size: int64(len(raw))}
	if err := w.blob(ctx, m.Config.Digest, raw); err != nil {
		return err
	}
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	return w.put(ctx, "http://"+w.addr+"/v2/"+repo+"/manifests/"+tag, m.MediaType, bytes.NewReader(raw))
}
