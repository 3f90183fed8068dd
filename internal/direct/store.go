package direct

import (
	"context"
	"io"
)

// Store has what need not be fetched of a file.
type Store interface {
	// Part returns the payload of a part that is all there, verified
	// already; nil where it is not.
	Part(part int) io.Reader
}

// Keeper is a Store that keeps what is fetched. Offsets are in a part's
// payload. Units begin at a multiple of the part's grain, and end at one
// or with the part. Different units may be worked on at the same time.
type Keeper interface {
	Store
	// Grain is how many bytes of a part are kept as one.
	Grain(part int) int64
	// Here says whether Load would succeed now, as far as can be told at
	// once.
	Here(part int, off, n int64) bool
	// Claim is called before n bytes are fetched. It waits while they come
	// in some other way; then Load succeeds. release ends the claim.
	Claim(ctx context.Context, part int, off, n int64) (release func(), err error)
	// Own claims all of a part without waiting.
	Own(part int) (release func(), ok bool)
	// Load fills p, where all of it is there: verified already, or a
	// stretch of a blob that is hashed as a whole here.
	Load(part int, off int64, p []byte) bool
	// Keep keeps p; verified says that a digest vouches for it.
	Keep(part int, off int64, p []byte, verified bool)
	// Vouch says that all of a part that has passed had its digest, Drop
	// that it did not.
	Vouch(part int)
	Drop(part int)
}

// keptUnits says that units are kept as they come.
func (p *part) keptUnits() bool { return p.keep != nil && p.plain() }

// here says that unit i need not be fetched.
func (p *part) here(i int) bool {
	off, n := p.payload(i)
	return p.keptUnits() && p.keep.Here(p.index, off, n)
}

// claim is Keeper.Claim for unit i.
func (p *part) claim(ctx context.Context, i int) (release func(), err error) {
	if !p.keptUnits() {
		return func() {}, nil
	}
	off, n := p.payload(i)
	return p.keep.Claim(ctx, p.index, off, n)
}

// load returns unit i where it need not be fetched, else nil.
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

// store keeps unit i.
func (p *part) store(i int, data []byte) {
	if p.keptUnits() {
		off, _ := p.payload(i)
		p.keep.Keep(p.index, off, data, !p.cut || p.sums)
	}
}

// passing keeps the payload of a frame as it is decoded.
type passing struct {
	r   io.Reader
	p   *part
	off int64  // of buf
	buf []byte // less than a grain
}

// keepPassing is r, kept as it is read, unless somebody else is at it.
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
