package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

const (
	// fewLayers bounds the layers of an artifact whose chunk size is chosen
	// automatically.
	fewLayers = 2000

	// leastChunk is the smallest chunk size that is chosen, in bytes. A blob
	// costs a registry some milliseconds, each way, and a chunk with one
	// changed page is sent whole: docs/performance.md has both by size.
	leastChunk = 4 << 20

	// layersAside are kept free in a stream for files that the envelope does
	// not mention; fewAside of them for small ones.
	layersAside = 200
	fewAside    = 50

	// manifestAside is the size of a manifest without its layers, in bytes.
	manifestAside = 64 << 10

	// minEncoded is the payload below which a file is left unencoded, in
	// bytes.
	minEncoded = 1 << 20

	maxChunk = int64(1) << 40 // bytes; the largest chunk size that is chosen
)

// checkFormat validates the options for format v2.
func (o *PushOptions) checkFormat() error {
	switch {
	case o.Zstd < 0 || o.Zstd > zstdframe.MaxLevel:
		return fmt.Errorf("snapshot push: zstd level %d is not one of 1 to %d", o.Zstd, zstdframe.MaxLevel)
	case o.Chunk < 0 || o.Chunk%chunkUnit != 0 || o.Chunk > maxChunk:
		return fmt.Errorf("snapshot push: chunks of %d bytes: a multiple of 1 MiB is needed", o.Chunk)
	case o.Memory < 0 || o.Memory > 0 && o.Memory < minMemory:
		return fmt.Errorf("snapshot push: %d bytes of memory: at least %d are needed", o.Memory, minMemory)
	case o.Packed && o.Chunk != 0:
		return errors.New("snapshot push: the packed format has no chunks")
	case o.Granule != 0 && packed.CheckGranule(o.Granule) != nil:
		return fmt.Errorf("snapshot push: granules of %d bytes: a power of two from 16 KiB to 1 MiB is needed", o.Granule)
	case o.Concurrency < 0:
		return errors.New("snapshot push: a negative number of uploads at a time")
	}
	return nil
}

// v2 reports whether files may be compressed or split.
func (o *PushOptions) v2() bool { return o.Zstd > 0 || o.Chunk > 0 }

// chunkPlan chooses the chunk size: the requested one, else the smallest
// power of two MiB, from leastChunk up, with which the artifact has fewer
// than fewLayers layers. With a tar that can seek, all sizes are known, and
// all files get the same. In a stream, each file gets the size that suffices
// for it, for the files before it and for the rest of what the envelope
// mentions; a file that the envelope does not mention gets half of the
// layers that are left, as there may be more such files.
type chunkPlan struct {
	seenFiles
	asked  int64
	sizes  []int64
	whole  bool // sizes is complete
	layers int64
	text   int64 // bytes of the layers in the manifest
}

func newChunkPlan(asked int64, sizes []int64) *chunkPlan {
	return &chunkPlan{asked: asked, sizes: sizes, whole: sizes != nil}
}

// next returns the chunk size for the next file.
func (p *chunkPlan) next(name string, size int64, env *envelopeConfig) (int64, error) {
	before := p.rest(env, sparse.MaxSize)
	p.see(name)
	chunk := p.asked
	if chunk == 0 {
		chunk = p.choose(size, env, p.rest(env, sparse.MaxSize) < before)
	}
	if p.whole {
		p.asked = chunk // the same for all
	}
	n := layerCount(size, chunk)
	text, err := layerText(name, size, n)
	if err != nil {
		return 0, err
	}
	p.layers += n
	if p.text += n * text; p.text > MaxManifest-manifestAside {
		return 0, fmt.Errorf("chunks of %d MiB are too small: the manifest would have more than %d layers, and more than the %d bytes that registries take",
			chunk>>20, p.layers-1, MaxManifest)
	}
	return chunk, nil
}

// choose returns the chunk size for a file; told means that the envelope
// mentions it.
func (p *chunkPlan) choose(size int64, env *envelopeConfig, told bool) int64 {
	for chunk := int64(leastChunk); ; chunk *= 2 {
		own := layerCount(size, chunk)
		n := p.layers + layerCount(p.rest(env, sparse.MaxSize), chunk)
		switch {
		case p.whole:
			n, own = 0, 0
			for _, s := range p.sizes {
				n += layerCount(s, chunk)
				own = max(own, layerCount(s, chunk))
			}
		case told:
			n += own + layersAside
		default:
			n += 2*own + fewAside
		}
		if n < fewLayers || own == 1 {
			return chunk
		}
	}
}

// layerText bounds the bytes that each of the n layers of a file takes in
// the manifest.
func layerText(name string, size, n int64) (int64, error) {
	d := (&storedFile{name: name, encoded: true}).layer(0, digests.Of(nil), size)
	if n > 1 {
		d.Annotations[annotationChunkIndex] = strconv.FormatInt(n-1, 10)
		d.Annotations[annotationChunkCount] = strconv.FormatInt(n, 10)
	}
	text, err := json.MarshalIndent(&d, "    ", "  ")
	return int64(len(text) + len(",\n    ")), err
}

// layerCount returns the number of layers of a file of size bytes.
func layerCount(size, chunk int64) int64 { return max(1, (size+chunk-1)/chunk) }
