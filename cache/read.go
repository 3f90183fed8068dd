package cache

import (
	"context"
	"errors"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/cache/internal/readahead"
	"github.com/cocoonstack/epochfs/internal/transport"
)

// access returns a read of n bytes from off on, which lie within the file.
func (e *entry) access(off, n int64) readahead.Access {
	return readahead.Access{Off: off, N: n, From: e.file.Map.PayloadAt(off), To: e.file.Map.PayloadAt(off + n)}
}

// readAt fills p, which lies within the file. exactly is for a reader that
// knows what it will want next.
func (e *entry) readAt(ctx context.Context, p []byte, off int64, exactly bool) error {
	if e.disk.Changed() {
		e.cache.notice()
	}
	a := e.access(off, int64(len(p)))
	if exactly {
		a.Most = readahead.NothingAhead
	}
	held, err := e.ready(ctx, a)
	if err != nil {
		return err
	}
	if e.state.Unsafe() {
		err = disk.ErrUnsafe
	} else {
		err = e.disk.ReadAt(p, a.Off, a.From, a.To)
	}
	if err != nil {
		return e.readAgain(ctx, p, a, held, err)
	}
	for i, payload := range held {
		e.grid.Spread(p, off, i, payload)
	}
	return nil
}

// ready blocks until what is read is there and may be handed out. It returns
// those pieces that are in memory and not on disk.
func (e *entry) ready(ctx context.Context, a readahead.Access) (held overlay.Pieces, err error) {
	for ready := a.From == a.To || e.state.Sealed(); !ready; {
		if err := e.proofs.prove(ctx, a.From, a.To); err != nil {
			return nil, err
		}
		if held, err = e.ensure(ctx, a); err != nil {
			return nil, err
		}
		// What has gone meanwhile came anew, and must be proved again.
		ready = e.proofs.proved(a.From, a.To, held)
	}
	return held, nil
}

// ensure blocks until the payload of a read is there, and has fetched what an
// orderly reader will want next.
func (e *entry) ensure(ctx context.Context, a readahead.Access) (overlay.Pieces, error) {
	i, j := e.grid.In(a.From, a.To)
	here := e.state.HasAll(i, j)
	a.Missing = !here
	if a.Most != readahead.NothingAhead {
		if e.unkept() || e.cache.quota.Tight() || e.cache.pace.behind() {
			a.Most = overlay.Size / 2 // what is held in memory must be there when it is read
		}
		e.fetchAhead(e.reading.Saw(a, e.file.PayloadSize(), e.link.RoundTrip()))
	}
	if here {
		return nil, nil
	}
	e.cache.counts.misses.Add(1)
	e.cache.counts.waiting.Add(1)
	defer e.cache.counts.waiting.Add(-1)
	ctx, cancel := e.cache.readTimeout(ctx)
	defer cancel()
	return e.obtain(ctx, i, j)
}

// fetchAhead queues what is missing of a reach, in the order of the reads
// to come.
func (e *entry) fetchAhead(r readahead.Reach) {
	if r.From < r.To {
		i, j := e.grid.In(r.From, r.To)
		e.flights.queueMissing(ahead, i, j, r.Request)
	}
	queued := -1 // steps may be shorter than pieces
	for k := range int64(r.Count) {
		off := r.Off + k*r.Step
		if off < 0 || off >= e.file.Size() {
			return
		}
		a := e.access(off, min(r.N, e.file.Size()-off))
		if a.From == a.To {
			continue
		}
		if i, j := e.grid.In(a.From, a.To); i != queued {
			e.flights.queueMissing(ahead, i, j, 0)
			queued = i
		}
	}
}

// readAgain fills p, of which the disk did not give something back: that is
// fetched anew, and handed over from memory.
func (e *entry) readAgain(ctx context.Context, p []byte, a readahead.Access, held overlay.Pieces, cause error) error {
	for range mostLosses {
		if errors.Is(cause, errClosed) {
			break
		}
		clear(p)
		var lost []int
		if lost, cause = e.readPieces(p, a, held); cause == nil {
			return nil
		}
		e.lose(lost, cause)
		var err error
		if held, err = e.ready(ctx, a); err != nil {
			return err
		}
	}
	return transport.NoEOF(cause)
}

// readPieces fills p piece by piece, and returns those that the disk does
// not give back, with its last error.
func (e *entry) readPieces(p []byte, a readahead.Access, held overlay.Pieces) (lost []int, last error) {
	for off := a.From; off < a.To; {
		i := e.grid.At(off)
		start, n := e.grid.Extent(i)
		end := min(start+n, a.To)
		if payload, ok := held[i]; ok {
			e.grid.Spread(p, a.Off, i, payload)
		} else if err := e.disk.ReadPiece(i, p, a.Off, off, end); err != nil {
			lost, last = append(lost, i), err
		}
		off = end
	}
	return lost, last
}
