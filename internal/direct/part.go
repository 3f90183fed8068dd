package direct

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// part is a part of a file that is being read.
type part struct {
	*layout.Part
	name  string    // of the file, for errors
	index int       // in the file
	size  int64     // stored bytes of a unit; the last may be shorter
	count int       // number of units
	cut   bool      // units are stored bytes, not the verified payload of a part
	sums  bool      // each unit consists of pieces with digests
	local io.Reader // the whole payload, if it is local
	// instead is fetched if local fails.
	instead *part
	keep    Cache // nil if fetched bytes are not written to a cache

	packed  *layout.Index // of a packed file, whose units are decoded granules
	perUnit int           // granules of a unit; the last may have fewer

	// Under Payloads.mu.
	next     int           // the first unit that was not begun
	read     int           // the first unit that was not read
	streamed bool          // one goroutine fills the units that were not begun yet
	units    map[int]*unit // begun or awaited, and not yet read
	left     bool          // its reader was closed early
	ctx      context.Context
	stop     context.CancelFunc // ends ctx; nil until a unit was begun
}

// unit is a range of a part that is being fetched. data and err are final
// once done is closed.
type unit struct {
	done chan struct{}
	data []byte // payload if the part is one unit, else stored bytes
	err  error
	// Under Payloads.mu.
	weight  int64 // memory, once it was begun
	fetched bool  // a fetcher fetches or has fetched it
}

// plan cuts a part into units. A frame that fits into memory together with
// its decoded form is one unit, and so is a small raw part.
func (d *Payloads) plan(f *layout.File, store Store, index int) *part {
	lp := &f.Parts[index]
	p := &part{Part: lp, name: f.Name, index: index, size: lp.StoredSize, count: 1, units: map[int]*unit{}}
	if store != nil {
		p.local = store.Part(index)
	}
	if p.local != nil || lp.Length == 0 && lp.StoredSize == 0 {
		p.count = 0
		if p.local != nil {
			p.instead = d.plan(f, nil, index)
		}
		return p
	}
	usual := max(unitLeast, min(unitMost, d.opts.Memory/32))
	if f.Index != nil {
		p.keep, _ = store.(Cache)
		p.planGranules(f.Index, usual)
		return p
	}
	if k, ok := store.(Cache); ok {
		usual = p.keepIn(k, usual, d.opts.Memory)
	}
	most := usual
	if lp.Encoding != layout.Raw {
		most = d.opts.Memory / 4
	}
	if p.weight(0) <= most {
		return p
	}
	p.cut, p.size = true, usual
	if s := lp.Pieces; s != nil && s.Size > 0 && s.Size <= usual {
		p.sums = true
		p.size = usual / s.Size * s.Size
	}
	p.count = int((lp.StoredSize + p.size - 1) / p.size)
	return p
}

// keepIn sets the cache of p, if memory allows units of the size that the
// cache can store. It returns that size, or usual.
func (p *part) keepIn(k Cache, usual, memory int64) int64 {
	grain := k.Grain(p.index)
	unit := max(grain, usual/grain*grain)
	if p.Encoding == layout.Raw && min(window*unit, p.StoredSize) > memory*3/4 {
		return usual
	}
	p.keep = k
	if p.Encoding == layout.Raw {
		return unit
	}
	return usual
}

// plain reports whether units are payload, once they are verified and
// decoded.
func (p *part) plain() bool { return !p.cut || p.Encoding == layout.Raw }

// payload returns the range of unit i in the part's payload, if units are
// payload.
func (p *part) payload(i int) (off, n int64) {
	switch {
	case p.packed != nil:
		first, last := p.granules(i)
		off, _ = p.packed.Extent(first)
		end, more := p.packed.Extent(last)
		return off, end + more - off
	case !p.cut:
		return 0, p.Length
	}
	return p.extent(i)
}

// missing returns how many units from the next on have to be fetched, up to
// n.
func (p *part) missing(n int) int {
	for i := 1; i < n; i++ {
		if p.here(p.next + i) {
			return i
		}
	}
	return n
}

// partial reports whether a unit is less than the stored blob.
func (p *part) partial() bool { return p.count > 1 && p.packed == nil }

// unitLocked returns unit i, which its reader may ask for before it was
// begun.
func (p *part) unitLocked(i int) *unit {
	u := p.units[i]
	if u == nil {
		u = &unit{done: make(chan struct{})}
		p.units[i] = u
	}
	return u
}

// extent returns the range of unit i in the stored blob.
func (p *part) extent(i int) (off, n int64) {
	off = int64(i) * p.size
	return off, min(p.size, p.StoredSize-off)
}

// weight returns the memory that unit i takes, in bytes.
func (p *part) weight(i int) int64 {
	if p.packed != nil {
		_, n := p.payload(i)
		return packed.DecodeRoom(n)
	}
	_, n := p.extent(i)
	if p.Encoding != layout.Raw && !p.cut {
		n += p.Length
	}
	return n
}

// finish verifies unit i. If it is a whole frame, finish decodes it and
// returns the stored bytes to m.
func (p *part) finish(i int, stored []byte, m *memory) ([]byte, error) {
	if p.cut {
		return stored, p.checkPieces(i, stored)
	}
	if digests.Of(stored) != p.Digest {
		return nil, p.wrong()
	}
	if p.Encoding == layout.Raw {
		return stored, nil
	}
	room := m.get(p.Length)
	data, err := zstdframe.Decode(room[:0], stored, p.Length)
	if err != nil {
		m.put(room)
		return nil, fmt.Errorf("%w: %w", p.wrong(), err)
	}
	m.put(stored)
	return data, nil
}

func (p *part) checkPieces(i int, stored []byte) error {
	if !p.sums {
		return nil
	}
	off, _ := p.extent(i)
	for at := int64(0); at < int64(len(stored)); at += p.Pieces.Size {
		piece := stored[at:min(at+p.Pieces.Size, int64(len(stored)))]
		if sha256.Sum256(piece) != p.Pieces.Sum((off+at)/p.Pieces.Size) {
			return p.wrong()
		}
	}
	return nil
}

// wrong returns the error for bytes that do not have their digest.
func (p *part) wrong() error {
	return &contentError{fmt.Errorf("%q, blob %s: digest does not agree: %w", p.name, p.Digest, layout.ErrContent)}
}

// contentError is an error of the bytes, not of the connection.
type contentError struct{ error }

func (e *contentError) Unwrap() error { return e.error }
