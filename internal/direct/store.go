package direct

import (
	"context"
	"io"
)

// Store is a local copy of parts of a file.
type Store interface {
	// Part returns the payload of a part that is complete and verified, or
	// nil.
	Part(part int) io.Reader
}

// Cache is a Store that stores fetched bytes. Offsets are in a part's
// payload. Units begin at a multiple of the part's grain, and end at one or
// with the part. Different units may be used concurrently.
type Cache interface {
	Store
	// Keeps reports whether Keep stores anything. If not, the claim of a
	// unit of which only some is there ends before the rest is fetched.
	Keeps() bool
	// Grain returns the number of bytes of a part that are stored as one.
	Grain(part int) int64
	// Here reports whether Load would succeed now, without waiting.
	Here(part int, off, n int64) bool
	// Claim is called before n bytes are fetched. It waits while they are
	// fetched elsewhere; then Load succeeds. release ends the claim.
	Claim(ctx context.Context, part int, off, n int64) (release func(), err error)
	// Own claims a whole part without waiting.
	Own(part int) (release func(), ok bool)
	// Load fills p and reports whether all bytes were there: verified
	// already, or part of a blob that this package hashes as a whole.
	Load(part int, off int64, p []byte) bool
	// Keep stores p; verified means that a digest vouches for it.
	Keep(part int, off int64, p []byte, verified bool)
	// Vouch confirms that a part, all of whose bytes have been stored, had
	// its digest; Drop that it did not.
	Vouch(part int)
	Drop(part int)
}

// keptUnits reports whether units are stored in the cache as they arrive.
func (p *part) keptUnits() bool { return p.keep != nil && p.plain() }

// here reports whether unit i need not be fetched.
func (p *part) here(i int) bool {
	off, n := p.payload(i)
	return p.keptUnits() && p.keep.Here(p.index, off, n)
}

// claim is Cache.Claim for unit i.
func (p *part) claim(ctx context.Context, i int) (release func(), err error) {
	if !p.keptUnits() {
		return func() {}, nil
	}
	off, n := p.payload(i)
	return p.keep.Claim(ctx, p.index, off, n)
}

// load returns unit i if it need not be fetched, else nil.
func (p *part) load(i int, m *memory) []byte {
	off, n := p.payload(i)
	if !p.here(i) {
		return nil
	}
	data := m.get(n)
	if !p.keep.Load(p.index, off, data) {
		m.put(data)
		return nil
	}
	return data
}

// store stores unit i in the cache.
func (p *part) store(i int, data []byte) {
	if p.keptUnits() {
		off, _ := p.payload(i)
		p.keep.Keep(p.index, off, data, !p.cut || p.sums)
	}
}

// passing writes the payload of a frame to the cache as it is decoded.
type passing struct {
	r   io.Reader
	p   *part
	off int64  // of buf
	buf []byte // less than a grain
}

// keepPassing returns r, with its bytes written to the cache as they are
// read, unless they are claimed elsewhere.
func (p *part) keepPassing(r io.Reader) (io.Reader, func()) {
	release, ok := p.keep.Own(p.index)
	if !ok {
		return r, func() {}
	}
	return &passing{r: r, p: p, buf: make([]byte, 0, p.keep.Grain(p.index))}, release
}

func (k *passing) Read(b []byte) (int, error) {
	n, err := k.r.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		more := min(len(rest), cap(k.buf)-len(k.buf))
		k.buf, rest = append(k.buf, rest[:more]...), rest[more:]
		if end := k.off + int64(len(k.buf)); len(k.buf) == cap(k.buf) || end == k.p.Length {
			k.p.keep.Keep(k.p.index, k.off, k.buf, false)
			k.off, k.buf = end, k.buf[:0]
		}
	}
	return n, err
}
