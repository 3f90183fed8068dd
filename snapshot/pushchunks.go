package snapshot

import (
	"context"
	"io"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	defaultMemory  = 256 << 20 // bytes, by default
	minMemory      = 96 << 20
	baseMemory     = 56 << 20 // bytes that a push takes in addition to its buffers
	defaultUploads = 8

	annotationChunkIndex = "cocoonstack.chunk.index"
	annotationChunkCount = "cocoonstack.chunk.count"
)

// chunker uploads files in format v2. One goroutine reads, some encode, more
// upload; each chunk is in a buffer of the two pools, which together bound
// the memory of a push.
type chunker struct {
	u   *push
	ctx context.Context
	g   *errgroup.Group
	enc *zstdframe.Encoder // nil to leave chunks unencoded

	size    int64       // chunk size of the pools
	raws    chan []byte // buffers to read into; nil ones are not yet allocated
	frames  chan []byte // buffers to encode into
	encode  chan *chunk
	upload  chan *chunk
	workers sync.WaitGroup // goroutines of the current pools
}

// chunk is a part of a file's payload that is being uploaded.
type chunk struct {
	f     *storedFile
	index int
	raw   []byte // a buffer of raws; nil after it was returned
	n     int    // bytes in raw
	frame []byte // a buffer of frames with the encoded chunk, or nil
}

// newChunker returns a chunker whose goroutines belong to g and end with
// close.
func newChunker(ctx context.Context, g *errgroup.Group, u *push) (*chunker, error) {
	c := &chunker{u: u, ctx: ctx, g: g}
	var err error
	if u.opts.Zstd > 0 {
		c.enc, err = zstdframe.NewEncoder(u.opts.Zstd, runtime.GOMAXPROCS(0))
	}
	return c, err
}

// buffers returns the numbers of buffers to read into and to encode into; 0,
// 0 if not even one of each fits.
func (c *chunker) buffers(size int64) (raws, frames int) {
	encoders, uploads := runtime.GOMAXPROCS(0), c.uploads()
	memory := c.u.opts.memory()
	// A quarter is reserved for garbage.
	fit := max(0, memory-memory/4-baseMemory-c.u.src.export.held) / size
	if c.enc == nil {
		n := int(min(fit, int64(uploads+encoders+1)))
		return n, n
	}
	if fit < 2 {
		return 0, 0
	}
	raws = int(min(max(fit/3, 1), int64(encoders+2)))
	frames = int(min(fit-int64(raws), int64(encoders+uploads)))
	return raws, frames
}

// memory returns the memory that the push may take, in bytes.
func (o *PushOptions) memory() int64 {
	if o.Memory == 0 {
		return defaultMemory
	}
	return o.Memory
}

// uploads returns the number of concurrent uploads of chunks.
func (c *chunker) uploads() int {
	if n := c.u.opts.Concurrency; n > 0 {
		return n
	}
	return defaultUploads
}

// prepare makes pools for chunks of this size. It returns false if memory is
// too small for them.
func (c *chunker) prepare(size int64) bool {
	if size == c.size {
		return c.raws != nil
	}
	c.close()
	c.size = size
	raws, frames := c.buffers(size)
	if raws == 0 {
		return false
	}
	c.raws, c.frames = make(chan []byte, raws), make(chan []byte, frames)
	for range raws {
		c.raws <- nil
	}
	for range frames {
		c.frames <- nil
	}
	c.encode, c.upload = make(chan *chunk), make(chan *chunk)
	encode, upload := c.encode, c.upload
	var encoders sync.WaitGroup
	for range min(raws, runtime.GOMAXPROCS(0)) {
		encoders.Add(1)
		c.run(func() error { defer encoders.Done(); return c.encoding(encode, upload) })
	}
	c.run(func() error { encoders.Wait(); close(upload); return nil })
	for range min(frames, c.uploads()) {
		c.run(func() error { return c.uploading(upload) })
	}
	return true
}

// run starts a goroutine of the current pools.
func (c *chunker) run(f func() error) {
	c.workers.Add(1)
	c.g.Go(func() error {
		defer c.workers.Done()
		return f()
	})
}

// close waits until all chunks are stored, or ctx has ended.
func (c *chunker) close() {
	if c.encode != nil {
		close(c.encode)
		c.workers.Wait()
	}
	c.encode, c.raws, c.frames = nil, nil, nil
}

// take returns a buffer of a pool, of size bytes.
func (c *chunker) take(pool chan []byte, size int64) ([]byte, error) {
	select {
	case buf := <-pool:
		if buf == nil {
			buf = make([]byte, size)
		}
		return buf, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}

// store reads a file and starts the uploads of its chunks. The file's layers
// are complete after close.
func (c *chunker) store(f *storedFile, e *exportEntry, size int64) error {
	count := int(layerCount(e.size, size))
	f.split = count > 1
	f.encoded = c.enc != nil
	f.layers = make([]manifest.Descriptor, count)
	f.left.Store(int64(count))
	if !c.prepare(size) {
		return c.storeStreams(f, e, size)
	}
	for i := range count {
		raw, err := c.take(c.raws, size)
		if err != nil {
			return err
		}
		n := min(size, e.size-int64(i)*size)
		if _, err := io.ReadFull(e.body, raw[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return asInput(err)
		}
		select {
		case c.encode <- &chunk{f: f, index: i, raw: raw, n: int(n)}:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	return nil
}

// encoding encodes and hashes chunks.
func (c *chunker) encoding(in <-chan *chunk, out chan<- *chunk) error {
	for k := range in {
		data := k.raw[:k.n]
		if c.enc != nil {
			buf, err := c.take(c.frames, c.size+c.size/256+1<<10)
			if err != nil {
				return err
			}
			data = c.enc.Encode(buf, data)
			k.frame = data
			c.raws <- k.raw
			k.raw = nil
		}
		k.f.layers[k.index] = k.f.layer(k.index, digests.Of(data), int64(len(data)))
		select {
		case out <- k:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	return nil
}

// uploading uploads chunks and returns their buffers.
func (c *chunker) uploading(in <-chan *chunk) error {
	for k := range in {
		l := &k.f.layers[k.index]
		data, pool := k.frame, c.frames
		if k.frame == nil {
			data, pool = k.raw[:k.n], c.raws
		}
		if err := c.u.putBytes(c.ctx, l.Digest, data); err != nil {
			return k.f.failed(err)
		}
		pool <- data[:cap(data)]
		c.u.arrived(k.f)
	}
	return nil
}

// storeStreams streams chunks that are larger than memory, one after
// another.
func (c *chunker) storeStreams(f *storedFile, e *exportEntry, size int64) error {
	for i := range f.layers {
		p := c.u.src.newPayload(c.ctx, e, min(size, e.size-int64(i)*size), nil)
		b := &frameBody{p: p, enc: c.enc}
		if err := b.begin(); err != nil {
			return err
		}
		var body io.Reader = b
		if _, ok := p.body().(io.Seeker); ok {
			body = frameSeeker{b}
		}
		if err := c.u.putStream(c.ctx, p, body, b.digest); err != nil {
			return f.failed(err)
		}
		p.finish()
		f.layers[i] = f.layer(i, b.digest(), b.n)
		c.u.arrived(f)
	}
	return nil
}

// arrived counts a stored layer.
func (u *push) arrived(f *storedFile) {
	if f.left.Add(-1) == 0 {
		u.progress(f)
	}
}

// layer returns the descriptor of a chunk, or of a file in one layer.
func (f *storedFile) layer(index int, digest string, size int64) manifest.Descriptor {
	d := manifest.Descriptor{
		MediaType:   manifest.MediaTypeForCocoonFile(f.name),
		Digest:      digest,
		Size:        size,
		Annotations: map[string]string{manifest.AnnotationTitle: f.name},
	}
	if f.encoded {
		d.MediaType += manifest.SuffixZstd
	}
	if f.split {
		d.Annotations[annotationChunkIndex] = strconv.Itoa(index)
		d.Annotations[annotationChunkCount] = strconv.Itoa(len(f.layers))
	}
	return d
}
