package cache

import (
	"context"
	"os"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// Copy makes a file of its own while all of its payload passes, of which
// not everything may have been kept: what the cache has when it has passed
// is copied from there in the end, the rest is written as it passes, so
// that nobody has to fetch it again.
type Copy struct {
	entry *entry
	file  *File
	dst   *os.File
	at    int64  // of the payload that has passed
	piece int    // at is in it
	kept  bool   // it is, and need not be written; of one that is not held
	held  []byte // its beginning, while it waits for its end
	wrote []run  // what was written to dst, in order
}

// run is a stretch of payload.
type run struct{ from, to int64 }

// mostHeld is the largest piece that is held until all of it has passed; a
// larger one that comes in parts is written unless it was there before.
const mostHeld = disk.FramePiece

// NewCopy begins a copy into dst, which is empty and has the file's size.
func (f *File) NewCopy(dst *os.File) *Copy { return &Copy{entry: f.entry, file: f, dst: dst} }

// Write takes the next bytes of the payload, once they were kept if they
// could be.
func (c *Copy) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		off, size := c.entry.grid.Extent(c.piece)
		n := min(off+size-c.at, int64(len(rest)))
		if err := c.pass(rest[:n], off, size); err != nil {
			return len(p) - len(rest), err
		}
		if rest = rest[n:]; c.at == off+size {
			c.piece++
		}
	}
	return len(p), nil
}

// pass takes bytes of the piece at off.
func (c *Copy) pass(p []byte, off, size int64) error {
	begun := c.at > off
	c.at += int64(len(p))
	whole := c.at == off+size
	switch {
	case !begun && whole:
	case size > mostHeld:
		if !begun {
			c.kept = c.entry.state.Verified(c.piece)
		}
		if c.kept {
			return nil
		}
		return c.write(p, c.at-int64(len(p)))
	default:
		if c.held = append(c.held, p...); !whole {
			return nil
		}
		p, c.held = c.held, c.held[:0]
	}
	if c.entry.state.Has(c.piece) {
		return nil
	}
	return c.write(p, off)
}

// write writes payload from off on to where it belongs in the file.
func (c *Copy) write(p []byte, off int64) error {
	end := off + int64(len(p))
	if last := len(c.wrote) - 1; last >= 0 && c.wrote[last].to == off {
		c.wrote[last].to = end
	} else {
		c.wrote = append(c.wrote, run{off, end})
	}
	for r := range c.entry.file.Map.Payload(off, int64(len(p))) {
		if _, err := c.dst.WriteAt(p[:r.Length], r.Offset); err != nil {
			return err
		}
		p = p[r.Length:]
	}
	return nil
}

// Finish completes the copy when all of the payload has passed and was
// verified. ok is false if the cache has lost something meanwhile; then the
// copy is not complete, and has nothing in it that the file has not.
func (c *Copy) Finish(ctx context.Context) (ok bool, err error) {
	if len(c.wrote) == 0 {
		return c.file.CopyTo(ctx, c.dst, func(int64) {})
	}
	var kept []run
	at := int64(0)
	for _, w := range append(c.wrote, run{c.at, c.at}) {
		if at < w.from {
			kept = append(kept, run{at, w.from})
		}
		at = w.to
	}
	for _, k := range kept {
		if c.entry.state.Unsafe() || !c.entry.state.AllVerified(c.entry.grid.In(k.from, k.to)) {
			return false, nil
		}
	}
	for _, k := range kept {
		if err := c.entry.disk.CopyPayload(ctx, c.dst, k.from, k.to, func(int64) {}); err != nil {
			return true, err
		}
	}
	return true, nil
}
