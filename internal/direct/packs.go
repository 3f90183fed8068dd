package direct

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// A registry that ignores Range sends no less than all of a pack. Packs are
// held in memory then, the latest ones; one that is too large for that is read
// once, from its first byte to its last, by units in their order.

// mostHeld bounds the packs that are held in memory, in bytes.
const mostHeld = 32 << 20

// readPack reads a whole pack, with as many requests as it takes. body is
// the answer to the first, or nil.
func (f *fetcher) readPack(digest string, size int64, body io.ReadCloser) ([]byte, error) {
	all := transport.Range{Digest: digest, Size: size, N: size, Checked: true, Stream: true}
	blob := f.d.link.NewReader(f.p.ctx, all, transport.ReaderOptions{Body: body})
	defer blob.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(blob, data); err != nil {
		return nil, transport.NoEOF(err)
	}
	return data, nil
}

// wholePack returns a pack from memory, after fetching it if necessary.
func (f *fetcher) wholePack(digest string, size int64) (*packBytes, error) {
	data, err := f.d.packs.get(f.p.ctx, digest, func() ([]byte, error) { return f.readPack(digest, size, nil) })
	if err != nil {
		return nil, err
	}
	return &packBytes{r: bytes.NewReader(data)}, nil
}

// packs holds the most recent whole packs.
type packs struct {
	most int64 // bytes of those that are held

	mu     sync.Mutex
	held   []heldPack
	coming map[string]chan struct{}

	streams packStreams
}

type heldPack struct {
	digest string
	data   []byte
}

// get returns a held pack, or fetches it. One caller at a time fetches a
// pack; the others wait for the result.
func (h *packs) get(ctx context.Context, digest string, fetch func() ([]byte, error)) ([]byte, error) {
	for {
		if data := h.find(digest); data != nil {
			return data, nil
		}
		other, end := h.claim(digest)
		if end != nil {
			data := h.find(digest) // it may have arrived since
			var err error
			if data == nil {
				data, err = fetch()
			}
			end(data)
			return data, err
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// find returns a held pack, or nil.
func (h *packs) find(digest string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.held {
		if h.held[i].digest == digest {
			return h.held[i].data
		}
	}
	return nil
}

// claim returns end if the caller is to fetch a pack; it must call end with
// the pack's bytes, or with nil. Else claim returns other, which is closed
// when another caller has fetched the pack.
func (h *packs) claim(digest string) (other <-chan struct{}, end func(data []byte)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.coming[digest]; c != nil {
		return c, nil
	}
	if h.coming == nil {
		h.coming = map[string]chan struct{}{}
	}
	c := make(chan struct{})
	h.coming[digest] = c
	return nil, func(data []byte) {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.coming, digest)
		close(c)
		if data != nil {
			h.holdLocked(heldPack{digest, data})
		}
	}
}

// holdLocked holds a pack, and as many of the earlier ones as fit.
func (h *packs) holdLocked(p heldPack) {
	h.held = slices.DeleteFunc(h.held, func(q heldPack) bool { return q.digest == p.digest })
	h.held = append(h.held, p)
	total := int64(0)
	for _, q := range h.held {
		total += int64(len(q.data))
	}
	for total > h.most && len(h.held) > 1 {
		total -= int64(len(h.held[0].data))
		h.held = h.held[1:]
	}
}

// drop forgets a wrong pack.
func (h *packs) drop(digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.held {
		if h.held[i].digest == digest {
			h.held = append(h.held[:i:i], h.held[i+1:]...)
			return
		}
	}
}

// packStreams is packs that are read in order, and not held.
type packStreams struct {
	mu   sync.Mutex // held while granules are read out of one
	open []packStream
}

type packStream struct {
	digest string
	blob   *transport.Reader
}

// mostStreams is how many packs are read at a time: those of a few snapshots
// that share granules take turns.
const mostStreams = 4

// passPack returns a pack from a byte on that is not behind r, for unit i of
// the part. It blocks until the units before that have come: a pack is read
// again from its first byte for a reader that comes too late.
func (f *fetcher) passPack(i int, digest string, size int64, r packed.Range) (*packBytes, error) {
	if err := f.awaitBefore(i); err != nil {
		return nil, err
	}
	p := &f.d.packs.streams
	p.mu.Lock()
	blob := p.takeLocked(digest)
	if blob == nil || blob.Offset() > r.Offset {
		if blob != nil {
			_ = blob.Close() // what was read was checked
		}
		all := transport.Range{Digest: digest, Size: size, N: size, Checked: true, Stream: true}
		blob = f.d.link.NewReader(f.d.ctx, all, transport.ReaderOptions{})
		if _, err := blob.Start(func() {}); err != nil {
			_ = blob.Close()
			p.mu.Unlock()
			return nil, err
		}
	}
	return &packBytes{r: blob, at: blob.Offset(), body: blob.Body(), blob: blob, done: func() {
		if end := r.Offset + r.Length; blob.Offset() == end && end < size {
			p.open = append(p.open, packStream{digest, blob})
		} else { // it broke, or was wrong, or is over
			_ = blob.Close()
		}
		p.mu.Unlock()
	}}, nil
}

// takeLocked takes a pack out of those that are open, or makes room for it.
func (p *packStreams) takeLocked(digest string) *transport.Reader {
	for i, o := range p.open {
		if o.digest == digest {
			p.open = slices.Delete(p.open, i, i+1)
			return o.blob
		}
	}
	if len(p.open) == mostStreams {
		_ = p.open[0].blob.Close() // what was read was checked
		p.open = slices.Delete(p.open, 0, 1)
	}
	return nil
}

// close ends the requests.
func (p *packStreams) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.open {
		_ = o.blob.Close() // what was read was checked
	}
	p.open = nil
}

// awaitBefore blocks until the units before i have come.
func (f *fetcher) awaitBefore(i int) error {
	for _, u := range f.d.unitsBefore(f.p, i) {
		select {
		case <-u.done:
		case <-f.p.ctx.Done():
			return context.Cause(f.p.ctx)
		}
	}
	return nil
}

// unitsBefore returns the units before i that were begun, and not read yet.
func (d *Payloads) unitsBefore(p *part, i int) (all []*unit) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, u := range p.units {
		if k < i && u.fetched {
			all = append(all, u)
		}
	}
	return all
}
