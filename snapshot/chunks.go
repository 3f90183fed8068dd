package snapshot

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// chunkUnit divides every chunk size, in bytes.
const chunkUnit = 1 << 20

// partsV2 returns the parts of a file of format v2: one layer, possibly
// compressed, or a list of chunks.
func (b *builder) partsV2(title string, meta *manifest.SnapshotFile) ([]layout.Part, error) {
	if meta.Size < 0 || meta.Size > sparse.MaxSize {
		return nil, wrong("size %d", meta.Size)
	}
	own := b.layers.byTitle[title]
	if len(meta.Chunks) != 0 {
		return b.chunks(title, own, meta)
	}
	if len(own) != 1 {
		return nil, wrong("%d layers have this title, and the config has no list of chunks", len(own))
	}
	p, err := partOf(own[0])
	if err != nil {
		return nil, err
	}
	p.Length = meta.Size
	if err := checkRaw(&p); err != nil {
		return nil, err
	}
	return []layout.Part{p}, nil
}

// partOf returns the part that a layer stores, without length and offset.
func partOf(d *manifest.Descriptor) (layout.Part, error) {
	p := layout.Part{Digest: d.Digest, StoredSize: d.Size}
	plain, zstd := strings.CutSuffix(d.MediaType, manifest.SuffixZstd)
	if zstd {
		p.Encoding = layout.Zstd
	}
	if !manifest.IsLayerMediaType(plain) {
		return p, wrong("unknown media type %q", d.MediaType)
	}
	return p, nil
}

// checkRaw compares the length of a raw part with the size of its blob.
func checkRaw(p *layout.Part) error {
	if p.Encoding == layout.Raw && p.StoredSize != p.Length {
		return wrong("blob %s has %d bytes, its place in the file %d", p.Digest, p.StoredSize, p.Length)
	}
	return nil
}

// chunks returns the parts of a split file. The config's list decides;
// chunks are looked up by digest, preferring layers with the file's own
// title.
func (b *builder) chunks(title string, own []*manifest.Descriptor, meta *manifest.SnapshotFile) ([]layout.Part, error) {
	if len(meta.Chunks) > maxParts {
		return nil, wrong("%d chunks, at most %d", len(meta.Chunks), maxParts)
	}
	parts := make([]layout.Part, len(meta.Chunks))
	listed := make(map[string]bool, len(parts))
	for i, digest := range meta.Chunks {
		d := b.layers.own[[2]string{title, digest}]
		if d == nil {
			d = b.layers.byDigest[digest]
		}
		if d == nil {
			return nil, wrong("chunk %d, %q, is not among the layers", i, digest)
		}
		p, err := partOf(d)
		if err != nil {
			return nil, err
		}
		parts[i] = p
		listed[digest] = true
	}
	for _, d := range own {
		if !listed[d.Digest] {
			return nil, wrong("layer %s is not among the file's chunks", d.Digest)
		}
	}
	return parts, b.place(parts, meta.Size)
}

// place sets the offsets and lengths of the chunks of a payload of size
// bytes.
func (b *builder) place(parts []layout.Part, size int64) error {
	stride, err := b.stride(parts, size)
	if err != nil {
		return err
	}
	lengths := make(map[string]int64, len(parts))
	for i := range parts {
		p := &parts[i]
		p.Offset = int64(i) * stride
		p.Length = min(stride, size-p.Offset)
		if err := checkRaw(p); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if n, ok := lengths[p.Digest]; ok && n != p.Length {
			return wrong("chunk %d: blob %s would hold %d bytes and %d", i, p.Digest, n, p.Length)
		}
		lengths[p.Digest] = p.Length
	}
	return nil
}

// stride finds the chunk size, which the artifact does not contain. Usually
// one multiple of chunkUnit fits the number of chunks; if several do, the
// size of a raw chunk decides, else the header of the first frame. The
// header is only a hint: a chunk must decode to exactly that length when it
// is read.
func (b *builder) stride(parts []layout.Part, size int64) (int64, error) {
	n := int64(len(parts))
	if n == 1 {
		return size, nil
	}
	lo, hi := strides(size, n)
	if lo > hi {
		return 0, wrong("%d bytes cannot be cut into %d chunks of whole MiB", size, n)
	}
	if lo == hi {
		return lo, nil
	}
	s, err := b.tellStride(parts, size)
	if err != nil {
		return 0, err
	}
	if s < lo || s > hi || s%chunkUnit != 0 {
		return 0, wrong("chunks of %d bytes do not give %d of a file of %d", s, n, size)
	}
	return s, nil
}

// strides returns the smallest and the largest multiple of chunkUnit that
// cuts size bytes into n > 1 chunks.
func strides(size, n int64) (lo, hi int64) {
	lo = (size + n - 1) / n
	lo = (lo + chunkUnit - 1) / chunkUnit * chunkUnit
	hi = (size - 1) / (n - 1) / chunkUnit * chunkUnit
	return max(lo, chunkUnit), hi
}

// tellStride finds the chunk size in the chunks themselves.
func (b *builder) tellStride(parts []layout.Part, size int64) (int64, error) {
	last := len(parts) - 1
	for i := range parts[:last] {
		if parts[i].Encoding == layout.Raw {
			return parts[i].StoredSize, nil
		}
	}
	if parts[last].Encoding == layout.Raw {
		return (size - parts[last].StoredSize) / int64(last), nil
	}
	return b.hint(&parts[0])
}

// frameContentSize returns the decoded size in the header of a compressed
// blob.
func frameContentSize(ctx context.Context, dl Downloader, name string, p *layout.Part) (int64, error) {
	n := min(p.StoredSize, zstdframe.HeaderSize)
	var body io.ReadCloser
	var err error
	if r, ok := dl.(RangeDownloader); ok {
		body, err = r.GetBlobRange(ctx, name, p.Digest, 0, n)
	} else {
		body, err = dl.GetBlob(ctx, name, p.Digest)
	}
	if err != nil {
		return 0, fmt.Errorf("get first bytes of blob %s: %w", p.Digest, err)
	}
	defer body.Close()
	header := make([]byte, n)
	if _, err := io.ReadFull(body, header); err != nil {
		return 0, fmt.Errorf("read first bytes of blob %s: %w", p.Digest, err)
	}
	size, ok := zstdframe.ContentSize(header)
	if !ok {
		return 0, wrong("chunk %s does not say how much it holds, and several chunk sizes fit", p.Digest)
	}
	return size, nil
}
