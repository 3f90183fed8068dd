package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// config writes and uploads the config blob.
func (u *push) config(ctx context.Context) (manifest.Descriptor, error) {
	env := &u.src.export.envelope.Config
	text := string(u.src.export.text)
	for _, key := range u.src.export.odd {
		u.warn("%s of %s has a value of another type than expected: only the file itself keeps it", key, EnvelopeName)
	}
	engine, err := engineText(u.src.export.text)
	if err != nil {
		return manifest.Descriptor{}, err
	}
	cfg := manifest.SnapshotConfig{
		SchemaVersion: u.format(),
		SnapshotID:    env.ID, Description: env.Description,
		Image: env.Image, ImageDigest: env.ImageDigest, ImageType: env.ImageType, ImageBlobIDs: env.ImageBlobIDs,
		Hypervisor: env.Hypervisor, CPU: env.CPU, Memory: env.Memory, Storage: env.Storage,
		NICs: env.NICs, Network: env.Network, Windows: env.Windows,
		Files: map[string]manifest.SnapshotFile{}, CreatedAt: u.opts.Created.UTC(),
		Engine: engine, Envelope: &text,
	}
	u.describeFiles(&cfg)
	data, err := json.Marshal(&cfg)
	if err != nil {
		return manifest.Descriptor{}, err
	}
	if len(data) > MaxConfig {
		return manifest.Descriptor{}, wrong("config blob of %d bytes, readers take %d", len(data), MaxConfig)
	}
	if len(data) > smallConfig {
		u.warn("the config blob has %d bytes: epoch v0.1.8 reads only %d of it and cannot pull this snapshot", len(data), smallConfig)
	}
	d := manifest.Descriptor{
		MediaType: manifest.MediaTypeSnapshotConfig,
		Digest:    digests.Of(data),
		Size:      int64(len(data)),
	}
	if u.packer != nil {
		d.MediaType = manifest.MediaTypePackedConfig
	}
	if err := u.putBytes(ctx, d.Digest, data); err != nil {
		return manifest.Descriptor{}, err
	}
	return d, nil
}

// describeFiles adds the description of each file to the config.
func (u *push) describeFiles(cfg *manifest.SnapshotConfig) {
	v2 := u.format() == "v2"
	if u.packer != nil {
		cfg.Base = u.opts.Base.digest()
	} else if !v2 {
		cfg.Pieces = choosePieces(u.stored)
	}
	for _, f := range u.stored {
		meta := f.meta
		if v2 {
			meta.Size = f.size
		}
		if f.split {
			meta.Chunks = make([]string, len(f.layers))
			for i := range f.layers {
				meta.Chunks[i] = f.layers[i].Digest
			}
		}
		cfg.Files[f.name] = meta
	}
}

// manifest returns the manifest's bytes.
func (u *push) manifest(cfg manifest.Descriptor) ([]byte, error) {
	m := manifest.OCIManifest{
		SchemaVersion: 2,
		MediaType:     manifest.MediaTypeOCIManifest,
		ArtifactType:  manifest.ArtifactTypeSnapshot,
		Config:        cfg,
		Annotations: map[string]string{
			manifest.AnnotationCreated: u.opts.Created.UTC().Format(time.RFC3339),
		},
	}
	for key, value := range map[string]string{
		manifest.AnnotationSnapshotBaseImage: u.opts.BaseImage,
		manifest.AnnotationSource:            u.opts.Source,
		manifest.AnnotationRevision:          u.opts.Revision,
	} {
		if value != "" {
			m.Annotations[key] = value
		}
	}
	maps.Copy(m.Annotations, u.opts.Annotations)
	if u.format() == "v2" {
		m.ArtifactType = manifest.ArtifactTypeSnapshotV2
	}
	for _, f := range u.stored {
		m.Layers = append(m.Layers, f.layers...)
	}
	if u.packer != nil {
		m.ArtifactType = manifest.ArtifactTypePacked
		m.Layers = append(m.Layers, u.packer.layers()...)
	}
	raw, err := json.MarshalIndent(&m, "", "  ")
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxManifest {
		return nil, fmt.Errorf("manifest of %d bytes, registries take %d", len(raw), MaxManifest)
	}
	return raw, nil
}
