package direct

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// part is one part of a file on its way.
type part struct {
	*layout.Part
	name  string // of the file, for errors
	size  int64  // stored bytes a unit; the last may be shorter
	count int    // units
	cut   bool   // units are stored bytes, and not the payload of a part that was checked
	sums  bool   // each unit is made of pieces that have digests
	local io.Reader

	// Under Payloads.mu.
	next     int           // the first unit that was not begun
	read     int           // the first unit that was not read
	streamed bool          // one goroutine fills the units that were not begun yet
	units    map[int]*unit // begun or waited for, and not yet read
}

// unit is a stretch of a part on its way. data and err may be read when
// done is closed.
type unit struct {
	done   chan struct{}
	data   []byte // payload where the part is one unit, else stored bytes
	err    error
	weight int64 // memory, once it was begun
}

// plan cuts a part into units. A frame that fits with what it decodes to
// is one unit, so is a small raw part.
func (d *Payloads) plan(lp *layout.Part, name string) *part {
	p := &part{Part: lp, name: name, size: lp.StoredSize, count: 1, units: map[int]*unit{}}
	if lp.Length == 0 && lp.StoredSize == 0 {
		p.count = 0
		return p
	}
	usual := max(unitLeast, min(unitMost, d.opts.Memory/32))
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

// partial says that a unit is less than the stored blob.
func (p *part) partial() bool { return p.count > 1 }

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
	if sum := sha256.Sum256(stored); "sha256:"+hex.EncodeToString(sum[:]) != p.Digest {
		return nil, p.wrong()
	}
	if p.Encoding == layout.Raw {
		return stored, nil
	}
	data := m.get(p.Length)
	data, err := zstdframe.Decode(data[:0], stored, p.Length)
	if err != nil {
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
