package direct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// packsHeld bounds the packs held in memory because the registry sends only
// whole packs, in bytes; one pack is held whatever its size.
const packsHeld = 32 << 20

// planGranules cuts a packed file into units of about usual bytes.
func (p *part) planGranules(x *layout.Index, usual int64) {
	p.packed = x
	p.perUnit = int(max(1, usual/x.Head.Granule))
	p.size = int64(p.perUnit) * x.Head.Granule
	p.count = (x.Granules() + p.perUnit - 1) / p.perUnit
}

// granules returns the first and the last granule of unit i.
func (p *part) granules(i int) (first, last int) {
	first = i * p.perUnit
	return first, min(first+p.perUnit, p.packed.Granules()) - 1
}

// fetchGranules fetches the granules of unit i, with one request for each
// range of a pack.
func (f *fetcher) fetchGranules(i int) ([]byte, error) {
	p := f.p
	first, last := p.granules(i)
	wanted := make([]packed.Wanted, 0, last+1-first)
	for n := first; n <= last; n++ {
		g, err := p.packed.Granule(p.ctx, n)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", p.name, err)
		}
		wanted = append(wanted, packed.Wanted{Granule: g, ID: n})
	}
	off, n := p.payload(i)
	u := &granuleUnit{f: f, off: off, data: f.d.memory.get(n)}
	for _, r := range packed.Plan(wanted, packed.Gap, unitMost) {
		if err := u.fetch(r); err != nil {
			f.d.memory.put(u.data)
			return nil, err
		}
	}
	f.d.dispatch() // the time to an answer is known now
	return u.data, nil
}

// granuleUnit is a unit that is being filled with granules.
type granuleUnit struct {
	f    *fetcher
	off  int64 // of data in the payload
	data []byte
}

// fetch fetches one range. It retries once if the bytes were wrong, as they
// may have been damaged on the way, and again while another mirror can be
// asked.
func (u *granuleUnit) fetch(r packed.Range) error {
	f := u.f
	digest, size := f.p.packed.Pack(r.Pack)
	for bad := 0; ; {
		in, err := f.openPack(digest, size, r)
		if err != nil {
			return err
		}
		err = u.take(in, r)
		more := errors.Is(err, layout.ErrContent) && f.d.link.Blame(digest, in.body)
		in.close()
		if !errors.Is(err, layout.ErrContent) {
			return err
		}
		if f.d.packs.drop(digest); !more {
			bad++
		}
		if bad > 1 {
			return &contentError{fmt.Errorf("%q, pack %s: %w", f.p.name, digest, err)}
		}
	}
}

// take decodes the granules of a range.
func (u *granuleUnit) take(in *packBytes, r packed.Range) error {
	index := u.f.p.packed
	stored := u.f.d.memory.get(packed.MaxStored(index.Head.Granule))
	defer u.f.d.memory.put(stored)
	_, err := packed.ReadFrames(in, in.at, r.Granules, stored, func(w packed.Wanted, frame []byte) error {
		off, n := index.Extent(w.ID)
		room := u.data[off-u.off:][:n:n]
		if _, err := packed.Decode(room, frame, n, w.Sum); err != nil {
			return fmt.Errorf("%w: %w", layout.ErrContent, err)
		}
		return nil
	})
	return transport.NoEOF(err)
}

// packBytes reads a pack, or a range of it, in order.
type packBytes struct {
	r    io.Reader
	at   int64 // offset of the first byte in the pack
	body io.ReadCloser
	blob *transport.Reader // nil for a pack in memory
}

// openPack requests a range of a pack. If the registry sends the whole pack,
// it is held for readers of its other granules.
func (f *fetcher) openPack(digest string, size int64, r packed.Range) (*packBytes, error) {
	known, served := f.d.link.Ranges()
	if known && !served {
		return f.wholePack(digest, size)
	}
	ask := transport.Range{Digest: digest, Size: size, Off: r.Offset, N: r.Length, Checked: true}
	var answer io.ReadCloser
	if !known && r.Length < size {
		in, body, err := f.probePack(ask)
		if body == nil {
			return in, err
		}
		answer = body
	}
	blob := f.d.link.NewReader(f.p.ctx, ask, transport.ReaderOptions{Body: answer})
	if _, err := blob.Start(func() {}); err != nil {
		_ = blob.Close()
		return nil, err
	}
	return &packBytes{r: blob, at: blob.Offset(), body: blob.Body(), blob: blob}, nil
}

// probePack requests a range from a registry that may not honour ranges,
// with retries. It returns the answer, or the whole pack if the registry
// sends that.
func (f *fetcher) probePack(ask transport.Range) (*packBytes, io.ReadCloser, error) {
	for began := time.Now(); ; {
		in, body, err := f.probeOnce(ask)
		if err == nil || transport.Final(err) || f.p.ctx.Err() != nil {
			return in, body, err
		}
		pause := f.d.link.Pause(err)
		if t := f.d.opts.ReadTimeout; t > 0 && time.Since(began)+pause > t {
			return nil, nil, fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		select {
		case <-time.After(pause):
		case <-f.p.ctx.Done():
			return nil, nil, err
		}
	}
}

func (f *fetcher) probeOnce(ask transport.Range) (*packBytes, io.ReadCloser, error) {
	var end func([]byte)
	body, whole, err := f.d.link.Open(f.p.ctx, ask, func() { _, end = f.d.packs.claim(ask.Digest) })
	switch {
	case end != nil: // others wait for the result
		data, err := f.readPack(ask.Digest, ask.Size, body)
		end(data)
		if err != nil {
			return nil, nil, err
		}
		return &packBytes{r: bytes.NewReader(data), body: body}, nil, nil
	case err != nil:
		return nil, nil, err
	case whole:
		if body != nil {
			_ = body.Close() // another fetcher reads the pack
		}
		in, err := f.wholePack(ask.Digest, ask.Size)
		return in, nil, err
	}
	return nil, body, nil
}

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

func (b *packBytes) Read(p []byte) (int, error) {
	if b.blob != nil {
		b.blob.ResetTimeout()
	}
	return b.r.Read(p)
}

func (b *packBytes) close() {
	if b.blob != nil {
		_ = b.blob.Close() // the bytes read were verified
	}
}

// packs holds the most recent whole packs.
type packs struct {
	mu     sync.Mutex
	held   []heldPack
	coming map[string]chan struct{}
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
	for total > packsHeld && len(h.held) > 1 {
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
