package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// packedReader reads the payload of a packed file, one run of adjacent
// granules at a time.
type packedReader struct {
	ctx  context.Context
	src  *blobPayloads
	file *layout.File

	at   int // granule after run
	run  []sizedGranule
	held blobRange
	// Without ranges: whole packs, the latest last, and the one that is too
	// large for that.
	packs  []blobRange
	stream packStream
	buf    []byte // decoded granule
	left   []byte // rest of buf, not returned yet
	err    error  // sticky
}

// sizedGranule is a granule and the number of bytes of its data.
type sizedGranule struct {
	packed.Granule
	size int64
}

// blobRange is a part of a pack in memory.
type blobRange struct {
	pack int
	off  int64
	data []byte
}

// runBytes bounds the stored bytes that one request fetches.
const runBytes = 4 << 20

func newPackedReader(ctx context.Context, src *blobPayloads, f *layout.File) *packedReader {
	return &packedReader{ctx: ctx, src: src, file: f}
}

func (r *packedReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 && r.err == nil {
		r.err = r.next()
	}
	if r.err != nil && len(r.left) == 0 {
		return 0, r.err
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// next decodes the next granule. It returns io.EOF after the last one.
func (r *packedReader) next() error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	if len(r.run) == 0 {
		if err := r.collect(); err != nil {
			return err
		}
	}
	g := r.run[0]
	r.run = r.run[1:]
	frame := r.held.data[g.Offset-r.held.off:][:g.Stored]
	if int64(cap(r.buf)) < g.size {
		r.buf = make([]byte, packed.DecodeRoom(r.file.Index.Head.Granule))
	}
	data, err := packed.Decode(r.buf, frame, g.size, g.Sum)
	if err != nil {
		err = fmt.Errorf("%w: %w", layout.ErrContent, err)
		digest, _ := r.file.Index.Pack(g.Pack)
		return fmt.Errorf("pack %s at byte %d: %w", digest, g.Offset, err)
	}
	r.left = data
	return nil
}

// collect fetches the next granules that one request can return.
func (r *packedReader) collect() error {
	x := r.file.Index
	r.run = r.run[:0]
	var end int64
	for ; r.at < x.Granules(); r.at++ {
		g, err := x.Granule(r.ctx, r.at)
		if err != nil {
			return err
		}
		if len(r.run) > 0 {
			first := r.run[0]
			if g.Pack != first.Pack || g.Offset < end || g.Offset-end > packed.Gap || g.Offset+g.Stored-first.Offset > runBytes {
				break
			}
		}
		_, size := x.Extent(r.at)
		r.run = append(r.run, sizedGranule{g, size})
		end = g.Offset + g.Stored
	}
	if len(r.run) == 0 {
		return io.EOF
	}
	return r.fetch(r.run[0].Pack, r.run[0].Offset, end)
}

// fetch makes bytes [from, to) of a pack the ones held. Without ranges it
// keeps whole packs for later granules, or reads on in one that is too large
// to be kept.
func (r *packedReader) fetch(pack int, from, to int64) error {
	if h := &r.held; h.data != nil && h.pack == pack && from >= h.off && to <= h.off+int64(len(h.data)) {
		return nil
	}
	digest, size := r.file.Index.Pack(pack)
	_, ranges := r.src.dl.(RangeDownloader)
	switch {
	case ranges:
		data, err := fetchRange(r.ctx, r.src.dl, r.src.name, digest, size, from, to-from)
		r.held = blobRange{pack: pack, off: from, data: data}
		return err
	case size > wholePacks:
		data, err := r.pass(pack, digest, from, to-from)
		r.held = blobRange{pack: pack, off: from, data: data}
		return err
	}
	for _, p := range r.packs {
		if p.pack == pack {
			r.held = p
			return nil
		}
	}
	data, err := fetchRange(r.ctx, r.src.dl, r.src.name, digest, size, 0, size)
	if err != nil {
		return err
	}
	r.held = blobRange{pack: pack, data: data}
	r.keep(r.held)
	return nil
}

// wholePacks bounds the packs that are kept without ranges, in bytes.
const wholePacks = 32 << 20

// keep keeps a pack, and as many of the latest others as fit.
func (r *packedReader) keep(p blobRange) {
	r.packs = append(r.packs, p)
	total := 0
	for _, q := range r.packs {
		total += len(q.data)
	}
	for ; total > wholePacks; r.packs = r.packs[1:] {
		total -= len(r.packs[0].data)
	}
}

// pass returns n bytes of a pack from off on, out of a stream that goes on
// from where the one before ended, if it can.
func (r *packedReader) pass(pack int, digest string, off, n int64) ([]byte, error) {
	s := &r.stream
	if s.body == nil || s.pack != pack || s.at > off {
		s.close()
		body, err := r.src.dl.GetBlob(r.ctx, r.src.name, digest)
		if err != nil {
			return nil, fmt.Errorf("get blob %s: %w", digest, err)
		}
		*s = packStream{pack: pack, body: body}
	}
	data := make([]byte, n)
	_, err := io.CopyN(io.Discard, s.body, off-s.at)
	if err == nil {
		_, err = io.ReadFull(s.body, data)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("read blob %s: %w", digest, err)
	}
	s.at = off + n
	return data, nil
}

// packStream is a pack that is read in order.
type packStream struct {
	pack int
	body io.ReadCloser // nil if none is open
	at   int64         // offset of the next byte
}

func (s *packStream) close() {
	if s.body != nil {
		_ = s.body.Close() // what was read was checked
	}
	*s = packStream{}
}

// Close makes every later Read fail.
func (r *packedReader) Close() error {
	r.left, r.held, r.packs = nil, blobRange{}, nil
	r.stream.close()
	if r.err == nil {
		r.err = errors.New("read of a closed payload")
	}
	return nil
}
