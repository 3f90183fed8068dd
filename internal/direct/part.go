package direct

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// part is one part of a file on its way.
type part struct {
	*layout.Part
	name  string    // of the file, for errors
	index int       // in the file
	size  int64     // stored bytes a unit; the last may be shorter
	count int       // units
	cut   bool      // units are stored bytes, and not the payload of a part that was checked
	sums  bool      // each unit is made of pieces that have digests
	local io.Reader // all of its payload, where that is there
	// instead is what is fetched when local fails.
	instead *part
	keep    Keeper // nil where nothing is kept

	packed  *layout.Index // of a packed file, whose units are granules decoded
	perUnit int           // granules a unit; the last may have fewer

	// Under Payloads.mu.
	next     int           // the first unit that was not begun
	read     int           // the first unit that was not read
	streamed bool          // one goroutine fills the units that were not begun yet
	units    map[int]*unit // begun or waited for, and not yet read
	left     bool          // its reader was closed before its end
	ctx      context.Context
	stop     context.CancelFunc // ends ctx; nil until a unit was begun
}

// unit is a stretch of a part on its way. data and err may be read when
// done is closed.
type unit struct {
	done chan struct{}
	data []byte // payload where the part is one unit, else stored bytes
	err  error
	// Under Payloads.mu.
	weight  int64 // memory, once it was begun
	fetched bool  // a fetcher brings it, or has
}

// plan cuts a part into units. A frame that fits with what it decodes to
// is one unit, so is a small raw part.
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
		p.keep, _ = store.(Keeper)
		p.planGranules(f.Index, usual)
		return p
	}
	if k, ok := store.(Keeper); ok {
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

// keepIn has p kept, in units that are usual bytes or what else can be
// kept as one. Where memory does not hold that, p is not kept.
func (p *part) keepIn(k Keeper, usual, memory int64) int64 {
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

// plain says that units are payload, once they are checked and decoded.
func (p *part) plain() bool { return !p.cut || p.Encoding == layout.Raw }

// payload is where unit i, if it is payload, lies in the part's.
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

// missing is how many units from the next on have to be fetched, up to n.
func (p *part) missing(n int) int {
	for i := 1; i < n; i++ {
		if p.here(p.next + i) {
			return i
		}
	}
	return n
}

// partial says that a unit is less than the stored blob.
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

// extent is where unit i lies in the stored blob.
func (p *part) extent(i int) (off, n int64) {
	off = int64(i) * p.size
	return off, min(p.size, p.StoredSize-off)
}

// weight is the memory that unit i takes.
func (p *part) weight(i int) int64 {
	if p.packed != nil {
		_, n := p.payload(i)
		return n
	}
	_, n := p.extent(i)
	if p.Encoding != layout.Raw && !p.cut {
		n += p.Length
	}
	return n
}

// finish checks unit i and, where it is a whole frame, decodes it: then
// the stored bytes go back to m.
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

// wrong makes the error for bytes that the digest does not vouch for.
func (p *part) wrong() error {
	return &contentError{fmt.Errorf("%q, blob %s: digest does not agree: %w", p.name, p.Digest, layout.ErrContent)}
}

// contentError is an error of the bytes, not of the way to them.
type contentError struct{ error }

func (e *contentError) Unwrap() error { return e.error }
