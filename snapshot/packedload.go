package snapshot

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// headsAtOnce bounds the concurrent fetches of index heads.
const headsAtOnce = 4

// packedFiles returns the files of a packed snapshot, in the order of their
// layers. It fetches only the head of every index.
func packedFiles(ctx context.Context, dl Downloader, name string, m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) ([]*layout.File, error) {
	if cfg.SchemaVersion != schemaPacked {
		return nil, wrong("a packed manifest has a config of schemaVersion %q", cfg.SchemaVersion)
	}
	layers, packs, err := splitLayers(m.Layers)
	if err != nil {
		return nil, err
	}
	b := &builder{cfg: cfg, layers: layers, packed: true}
	files, err := b.build(b.partsPacked)
	if err != nil {
		return nil, err
	}
	l := &indexLoader{dl: dl, name: name, packs: packs, sections: layout.NewSections()}
	l.segments.Store(int64(b.segments))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(headsAtOnce)
	for _, f := range files {
		if meta := cfg.Files[f.Name]; meta.Index != nil {
			g.Go(func() error {
				if err := l.load(ctx, f, &meta); err != nil {
					return fmt.Errorf("%s: %w", f.Name, err)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return files, b.countIndexes(files)
}

// schemaPacked is the schemaVersion of a packed artifact's config blob.
const schemaPacked = "packed"

// splitLayers separates the packs, which have no title, from the layers of
// files.
func splitLayers(all []manifest.Descriptor) (files *layerSet, packs map[string]int64, err error) {
	packs = map[string]int64{}
	var rest []manifest.Descriptor
	for i := range all {
		d := &all[i]
		if d.MediaType != manifest.MediaTypePack {
			rest = append(rest, *d)
			continue
		}
		if err := checkDescriptor(d); err != nil {
			return nil, nil, fmt.Errorf("layer %d: %w", i, err)
		}
		if size, ok := packs[d.Digest]; ok && size != d.Size {
			return nil, nil, wrong("pack %s has %d bytes in one layer and %d in another", d.Digest, d.Size, size)
		}
		packs[d.Digest] = d.Size
	}
	files, err = collectLayers(rest)
	return files, packs, err
}

// partsPacked returns the one layer of a file that is stored plain, and
// nothing for a packed file.
func (b *builder) partsPacked(title string, meta *manifest.SnapshotFile) ([]layout.Part, error) {
	if meta.Index == nil {
		return b.partsV1(title, meta)
	}
	own := b.layers.byTitle[title]
	x := meta.Index
	switch {
	case len(own) != 1 || own[0].MediaType != manifest.MediaTypeIndex || own[0].Digest != x.Digest || own[0].Size != x.Size:
		return nil, wrong("its index %s is not the layer of that title", x.Digest)
	case meta.SparseMap != "" || len(meta.Chunks) > 0:
		return nil, wrong("it has an index, and a map or chunks besides")
	case meta.Size < 0 || meta.Size > sparse.MaxSize || meta.SparseSize != 0 && meta.SparseSize < meta.Size || meta.SparseSize > sparse.MaxSize:
		return nil, wrong("%d bytes of data in a file of %d", meta.Size, meta.SparseSize)
	case x.Head.Size < 1 || x.Head.Size > packed.MaxHead || x.Head.Size > x.Size:
		return nil, wrong("an index of %d bytes with a head of %d", x.Size, x.Head.Size)
	}
	if b.heads += x.Head.Size; b.heads > packed.MaxHead {
		return nil, wrong("the heads of all indexes have more than %d bytes", packed.MaxHead)
	}
	if err := checkDigest(x.Head.Digest); err != nil {
		return nil, err
	}
	if err := packed.CheckGranule(x.Granule); err != nil {
		return nil, fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	if b.slots += packed.SlotCount(apparent(meta), x.Granule); b.slots > maxSlots {
		return nil, wrong("more than %d slots in all", maxSlots)
	}
	return nil, nil
}

// maxSlots bounds the slots of all files together. It is 8 TiB in granules
// of 32 KiB, and takes 48 MiB of memory, even if the files are mostly holes.
const maxSlots = 4 * packed.MaxSlots

// apparent returns the size of a packed file, including holes.
func apparent(meta *manifest.SnapshotFile) int64 {
	if meta.SparseSize != 0 {
		return meta.SparseSize
	}
	return meta.Size // of a file without a map
}

// indexLoader loads the indexes of an artifact's files.
type indexLoader struct {
	dl       Downloader
	name     string
	packs    map[string]int64
	sections *layout.Sections

	decoded, segments atomic.Int64 // of all heads
}

// load fetches the head of a file's index, and sets the file's map and
// index.
func (l *indexLoader) load(ctx context.Context, f *layout.File, meta *manifest.SnapshotFile) error {
	x := meta.Index
	sum, err := sumOf(x.Head.Digest)
	if err != nil {
		return err
	}
	fetch := func(ctx context.Context, off, n int64, sum packed.Sum) ([]byte, error) {
		return fetchVerified(ctx, l.dl, l.name, x.Digest, x.Size, off, n, sum)
	}
	frame, err := fetch(ctx, x.Size-x.Head.Size, x.Head.Size, sum)
	if err != nil {
		return err
	}
	if n, _ := zstdframe.ContentSize(frame); n > packed.MaxHead || l.decoded.Add(n) > packed.MaxHead {
		return wrong("the heads of all indexes have more than %d bytes", packed.MaxHead)
	}
	head, err := packed.ReadHead(frame, packed.File{Size: apparent(meta), Data: meta.Size, Granule: x.Granule, Frames: x.Size - x.Head.Size})
	if err != nil {
		return fmt.Errorf("%w: index %s: %w", layout.ErrContent, x.Digest, err)
	}
	if l.segments.Add(int64(head.Map.Len())) > sparse.MaxSegments {
		return wrong("more than %d segments in all", sparse.MaxSegments)
	}
	for _, p := range head.Packs {
		if n, ok := l.packs[digests.Format(p.Digest)]; !ok || n != p.Size {
			return wrong("pack %s of %d bytes is not among the layers", digests.Format(p.Digest), p.Size)
		}
	}
	f.Map = head.Map
	if meta.SparseSize != 0 {
		f.MapText = head.Map.Text()
	}
	f.MediaType = manifest.MediaTypeForCocoonFile(f.Name)
	f.Index = layout.NewIndex(x.Digest, x.Size, x.Head.Digest, head, fetch)
	f.Index.HoldIn(l.sections)
	f.Parts = []layout.Part{f.Index.Part()}
	return nil
}

// countIndexes checks the sums over all files.
func (b *builder) countIndexes(files []*layout.File) error {
	for _, f := range files {
		if f.Index == nil {
			continue
		}
		if err := b.total.add(f); err != nil {
			return err
		}
	}
	return nil
}

// fetchVerified returns bytes [off, off+n) of a blob, verified with their
// sum.
func fetchVerified(ctx context.Context, dl Downloader, name, digest string, size, off, n int64, sum packed.Sum) ([]byte, error) {
	if v, ok := dl.(verifyingDownloader); ok {
		return v.GetVerified(ctx, name, digest, size, off, n, sum)
	}
	data, err := fetchRange(ctx, dl, name, digest, size, off, n)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != sum {
		return nil, wrong("bytes %d to %d of blob %s have another digest", off, off+n, digest)
	}
	return data, nil
}

// fetchRange returns bytes [off, off+n) of a blob of size bytes. Without a
// RangeDownloader it reads and drops the bytes before off. The caller
// verifies the result.
func fetchRange(ctx context.Context, dl Downloader, name, digest string, size, off, n int64) ([]byte, error) {
	var body io.ReadCloser
	var err error
	if r, ok := dl.(RangeDownloader); ok {
		body, err = r.GetBlobRange(ctx, name, digest, off, n)
		off = 0
	} else {
		body, err = dl.GetBlob(ctx, name, digest)
	}
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", digest, err)
	}
	defer body.Close()
	if _, err := io.CopyN(io.Discard, body, off); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, fmt.Errorf("read %d of the %d bytes of blob %s: %w", n, size, digest, err)
	}
	return data, nil
}
