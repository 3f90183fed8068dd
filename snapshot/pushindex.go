package snapshot

import (
	"context"
	"fmt"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// writeIndexes uploads the index of every packed file.
func (p *packer) writeIndexes(ctx context.Context) error {
	for _, file := range p.files {
		data, meta, err := p.index(file)
		if err != nil {
			return fmt.Errorf("%s: %w", file.e.name, err)
		}
		if err := p.u.putBytes(ctx, meta.Digest, data); err != nil {
			return file.f.failed(err)
		}
		f := file.f
		f.meta.SparseMap, f.meta.Size, f.meta.Index = "", file.m.DataSize(), &meta
		f.layers = []manifest.Descriptor{{
			MediaType: manifest.MediaTypeIndex, Digest: meta.Digest, Size: meta.Size,
			Annotations: map[string]string{manifest.AnnotationTitle: f.name},
		}}
		p.u.progress(f)
	}
	return nil
}

// layers returns the packs that the artifact uses.
func (p *packer) layers() (all []manifest.Descriptor) {
	used := p.usage(p.files)
	for i, pk := range p.packs.packs {
		if used[i] > 0 {
			all = append(all, manifest.Descriptor{MediaType: manifest.MediaTypePack, Digest: pk.digest, Size: pk.size})
		}
	}
	return all
}

// index returns the index of a file, and its description for the config
// blob. Every granule must have its final place, and every pack its digest.
func (p *packer) index(file *packedFile) (data []byte, meta manifest.SnapshotIndex, err error) {
	w := packed.NewWriter(file.granule, p.enc)
	local := map[int32]int{} // index in packs by index in packSet
	var packs []packed.Pack
	i := 0
	for slot := range file.granules() {
		id := file.ids[i]
		place := p.known.places[id]
		n, ok := local[place.pack]
		if !ok {
			n = len(packs)
			local[place.pack] = n
			blob := p.packs.packs[place.pack]
			sum, err := sumOf(blob.digest)
			if err != nil {
				return nil, meta, err
			}
			packs = append(packs, packed.Pack{Digest: sum, Size: blob.size})
		}
		g := packed.Granule{Pack: n, Offset: int64(place.offset), Stored: int64(place.stored), Sum: p.known.sums[id]}
		if err := w.Add(slot, g); err != nil {
			return nil, meta, err
		}
		i++
	}
	data, head, err := w.Finish(file.m, packs)
	if err != nil {
		return nil, meta, fmt.Errorf("%w: %w", layout.ErrContent, err) // from the base
	}
	return data, manifest.SnapshotIndex{
		Digest: digests.Of(data), Size: int64(len(data)), Granule: file.granule,
		Head: manifest.IndexHead{Digest: digests.Of(data[len(data)-head:]), Size: int64(head)},
	}, nil
}
