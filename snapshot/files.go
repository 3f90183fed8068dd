package snapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// maxParts bounds the parts of all files together: 1 TiB in the smallest
// chunks, of 1 MiB, which take about 100 MiB of memory.
const maxParts = 1 << 20

// builder makes files from a snapshot's manifest and config.
type builder struct {
	cfg      *manifest.SnapshotConfig
	layers   *layerSet
	hint     func(p *layout.Part) (int64, error) // returns the decoded size in a frame's header
	packed   bool                                // the artifact has the packed format
	parts    int
	segments int
	heads    int64 // stored bytes of the heads of all indexes
	slots    int64 // of all packed files
	total    totals
}

// maxTotal bounds the sums over all files, 1 EiB. No snapshot comes near it,
// and sums of sizes cannot overflow.
const maxTotal = 1 << 60

// totals are sums over all files. Each addend is at most sparse.MaxSize.
type totals struct{ apparent, payload, stored int64 }

func (t *totals) add(f *layout.File) error {
	t.apparent += f.Size()
	t.payload += f.PayloadSize()
	for i := range f.Parts {
		if t.stored += f.Parts[i].StoredSize; t.stored > maxTotal {
			break
		}
	}
	if max(t.apparent, t.payload, t.stored) > maxTotal {
		return wrong("more than %d bytes in all", int64(maxTotal))
	}
	return nil
}

// snapshotFiles returns the files of a snapshot of any format, in the order
// of their first layers.
func snapshotFiles(ctx context.Context, dl Downloader, name string, m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) ([]*layout.File, error) {
	if m.ArtifactType == manifest.ArtifactTypePacked {
		return packedFiles(ctx, dl, name, m, cfg)
	}
	layers, err := collectLayers(m.Layers)
	if err != nil {
		return nil, err
	}
	b := &builder{cfg: cfg, layers: layers, hint: func(p *layout.Part) (int64, error) {
		return frameContentSize(ctx, dl, name, p)
	}}
	if m.ArtifactType == manifest.ArtifactTypeSnapshotV2 {
		if cfg.SchemaVersion != "v2" {
			return nil, wrong("a v2 manifest has a config of schemaVersion %q", cfg.SchemaVersion)
		}
		return b.build(b.partsV2)
	}
	if cfg.SchemaVersion != "v1" && cfg.SchemaVersion != "" {
		return nil, wrong("a v1 manifest has a config of schemaVersion %q", cfg.SchemaVersion)
	}
	return b.build(b.partsV1)
}

// build makes every file that a layer or the config names. parts returns its
// parts by the artifact's format.
func (b *builder) build(parts func(title string, meta *manifest.SnapshotFile) ([]layout.Part, error)) ([]*layout.File, error) {
	titles := slices.Clone(b.layers.titles)
	for _, title := range slices.Sorted(maps.Keys(b.cfg.Files)) {
		if b.layers.byTitle[title] != nil {
			continue
		}
		// All chunks of a file may have other titles.
		if len(b.cfg.Files[title].Chunks) == 0 {
			return nil, wrong("the config has a file %q that has no layer", title)
		}
		if err := checkName(title); err != nil {
			return nil, err
		}
		titles = append(titles, title)
	}
	for title := range b.cfg.Pieces {
		if b.layers.byTitle[title] == nil {
			return nil, wrong("the config has piece digests of %q, which has no layer", title)
		}
	}
	files := make([]*layout.File, 0, len(titles))
	for _, title := range titles {
		meta := b.cfg.Files[title]
		if !b.packed {
			meta.Index = nil // other formats do not have this key
		}
		ps, err := parts(title, &meta)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", title, err)
		}
		f, err := b.file(title, &meta, ps)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", title, err)
		}
		if meta.Index == nil {
			if err := b.total.add(f); err != nil {
				return nil, err
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// file makes a file of parts, mode and map.
func (b *builder) file(title string, meta *manifest.SnapshotFile, parts []layout.Part) (*layout.File, error) {
	var payload int64
	for i := range parts {
		payload += parts[i].Length // each at most sparse.MaxSize, so maxParts of them do not overflow
		if payload > sparse.MaxSize {
			return nil, wrong("payload of more than %d bytes", int64(sparse.MaxSize))
		}
	}
	if b.parts += len(parts); b.parts > maxParts {
		return nil, wrong("more than %d parts in all", maxParts)
	}
	if meta.Mode < 0 {
		return nil, wrong("mode %d", meta.Mode)
	}
	if err := checkRecords(meta.Records); err != nil {
		return nil, err
	}
	// Type, setuid and sticky bits are not kept.
	mode := uint32(meta.Mode & 0o777)
	_, told := b.cfg.Files[title]
	told = told && b.cfg.Envelope != nil // other writers use 0 for an unknown mode
	if meta.Mode == 0 && !told {
		mode = defaultMode
	}
	m := sparse.Dense(0) // the index has the map of a packed file
	if meta.Index == nil {
		var err error
		if m, err = b.sparseMap(meta, payload); err != nil {
			return nil, err
		}
	}
	mediaType := manifest.MediaTypeForCocoonFile(title)
	if own := b.layers.byTitle[title]; own != nil {
		mediaType = own[0].MediaType
	}
	return &layout.File{
		Name: title, MediaType: mediaType, Mode: mode,
		Map: m, MapText: meta.SparseMap, Records: meta.Records, Parts: parts,
	}, nil
}

func (b *builder) sparseMap(meta *manifest.SnapshotFile, payload int64) (*sparse.Map, error) {
	if meta.SparseMap == "" {
		if meta.SparseSize != 0 {
			return nil, wrong("sparse size %d without a sparse map", meta.SparseSize)
		}
		return sparse.Dense(payload), nil
	}
	m, err := sparse.Parse(meta.SparseMap, meta.SparseSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	if m.DataSize() != payload {
		return nil, wrong("the sparse map has %d bytes of data, the payload %d", m.DataSize(), payload)
	}
	if b.segments += m.Len(); b.segments > sparse.MaxSegments {
		return nil, wrong("more than %d segments in all", sparse.MaxSegments)
	}
	return m, nil
}

// partsV1 returns the one layer of a file of format v1.
func (b *builder) partsV1(title string, meta *manifest.SnapshotFile) ([]layout.Part, error) {
	own := b.layers.byTitle[title]
	if len(meta.Chunks) != 0 {
		return nil, wrong("split into chunks, which format v1 does not have")
	}
	if len(own) != 1 {
		return nil, wrong("%d layers have this title", len(own))
	}
	d := own[0]
	if suffix := encodingSuffix(d.MediaType); suffix != "" {
		return nil, wrong("media type %q: format v1 has no encoded layers", d.MediaType)
	}
	if meta.Size != 0 && meta.Size != d.Size {
		return nil, wrong("size %d in the config, %d in the manifest", meta.Size, d.Size)
	}
	pieces, err := piecesOf(b.cfg, title, d.Size)
	if err != nil {
		return nil, err
	}
	return []layout.Part{{Digest: d.Digest, StoredSize: d.Size, Length: d.Size, Pieces: pieces}}, nil
}

// encodingSuffix returns the suffix of a media type after a plus sign, if it
// names an encoding and not the meaning of the bytes.
func encodingSuffix(mt string) string {
	i := strings.LastIndexByte(mt, '+')
	if i < 0 || mt[i:] == "+json" {
		return ""
	}
	return mt[i:]
}

// layerSet indexes the manifest's layers.
type layerSet struct {
	titles   []string // in the order of their first layers
	byTitle  map[string][]*manifest.Descriptor
	byDigest map[string]*manifest.Descriptor    // first layer of each digest
	own      map[[2]string]*manifest.Descriptor // by title and digest
}

// collectLayers validates each layer, and that layers of one digest agree.
func collectLayers(layers []manifest.Descriptor) (*layerSet, error) {
	s := &layerSet{
		byTitle:  map[string][]*manifest.Descriptor{},
		byDigest: map[string]*manifest.Descriptor{},
		own:      map[[2]string]*manifest.Descriptor{},
	}
	for i := range layers {
		if err := s.add(&layers[i]); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if len(s.titles) == 0 {
		return nil, wrong("a snapshot without files")
	}
	return s, nil
}

func (s *layerSet) add(d *manifest.Descriptor) error {
	title := d.Title()
	if err := checkName(title); err != nil {
		return err
	}
	if err := checkDescriptor(d); err != nil {
		return err
	}
	if first := s.byDigest[d.Digest]; first == nil {
		s.byDigest[d.Digest] = d
	} else if first.Size != d.Size {
		return wrong("blob %s has %d bytes in one layer and %d in another", d.Digest, d.Size, first.Size)
	}
	if s.byTitle[title] == nil {
		s.titles = append(s.titles, title)
	}
	s.byTitle[title] = append(s.byTitle[title], d)
	key := [2]string{title, d.Digest}
	if first := s.own[key]; first == nil {
		s.own[key] = d
	} else if first.MediaType != d.MediaType {
		return wrong("blob %s of %q has two media types", d.Digest, title)
	}
	return nil
}
