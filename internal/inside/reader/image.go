package reader

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/internal/guestfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// errImage is the error of a read that the parent could not serve.
var errImage = errors.New("the disk could not be read")

// remote is an image that the parent reads. It caches nothing: package
// guestfs has a cache, and so has the parent.
type remote struct {
	conn   *sandbox.Conn
	talk   *sync.Mutex // held over a question and its answer
	number int
	size   int64
}

// Size returns the image's size.
func (r *remote) Size() int64 { return r.size }

// ReadAt fills p or fails.
func (r *remote) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size || int64(len(p)) > r.size-off {
		return 0, fmt.Errorf("%w: %d bytes at %d of an image of %d", io.ErrUnexpectedEOF, len(p), off, r.size)
	}
	for done := 0; done < len(p); {
		some := p[done:min(len(p), done+wire.MaxRead)]
		if err := r.ask(some, off+int64(done)); err != nil {
			return done, err
		}
		done += len(some)
	}
	return len(p), nil
}

// ask requests p from the parent.
func (r *remote) ask(p []byte, off int64) error {
	r.talk.Lock()
	defer r.talk.Unlock()
	e := wire.Encoder{B: r.conn.Buffer()}
	e.Num(uint64(r.number))
	e.Num(uint64(off))
	e.Num(uint64(len(p)))
	if err := r.conn.Write(wire.Read, e.B); err != nil {
		return err
	}
	kind, data, err := r.conn.Read()
	switch {
	case err != nil:
		return err
	case kind == wire.Bytes && len(data) == len(p):
		copy(p, data)
		return nil
	case kind == wire.Failed:
		return errImage
	}
	return fmt.Errorf("an answer of kind %d and %d bytes", kind, len(data))
}

// Prefetch forwards the hint.
func (r *remote) Prefetch(ranges []guestfs.Extent) {
	r.talk.Lock()
	defer r.talk.Unlock()
	for len(ranges) > 0 {
		some := ranges[:min(len(ranges), wire.MaxRanges)]
		ranges = ranges[len(some):]
		e := wire.Encoder{B: r.conn.Buffer()}
		e.Num(uint64(r.number))
		for _, x := range some {
			if x.Offset >= 0 && x.Length > 0 && x.Offset < r.size {
				e.Num(uint64(x.Offset))
				e.Num(uint64(min(x.Length, r.size-x.Offset)))
			}
		}
		_ = r.conn.Write(wire.Prefetch, e.B) // a hint; the next question fails too
	}
}
