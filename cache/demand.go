package cache

import (
	"context"
	"errors"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
)

// readTimeout returns ctx with the end that a read has.
func (c *Cache) readTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if t := c.opts.ReadTimeout; t > 0 {
		return context.WithTimeoutCause(ctx, t, ErrTimeout)
	}
	return ctx, func() {}
}

// obtain blocks until pieces [from, to) are present, and returns those that are
// in memory and not on disk. It ends early with ctx; the fetch goes on for
// others.
func (e *entry) obtain(ctx context.Context, from, to int) (held overlay.Pieces, err error) {
	for {
		e.recheck(from, to)
		if err := e.verdicts.against(e.grid, from, to); err != nil {
			return held, err
		}
		var waits []pending
		waits, held, err = e.flights.join(from, to, held)
		if err != nil || len(waits) == 0 {
			return held, err
		}
		for n, w := range waits {
			if err := e.flights.wait(ctx, w); err != nil {
				e.flights.leave(waits[n+1:])
				return held, err
			}
			if w.flight.data != nil {
				held = held.With(w.piece, w.flight.data)
			}
		}
	}
}

// mostLosses bounds how often a read finds pieces that the disk does not give
// back: another process may have put them there again meanwhile.
const mostLosses = 5

// lose makes pieces missing that the disk does not give back. This process
// does not trust the disk with them again.
func (e *entry) lose(pieces []int, cause error) {
	for _, i := range pieces {
		e.held.Distrust(i)
	}
	e.state.Unseal()
	for _, i := range pieces {
		if errors.Is(cause, disk.ErrUnsafe) { // other bytes, which may have been read
			e.disk.Discard(i, i+1, disk.Found{By: disk.ByDisk, Cause: cause})
		} else {
			e.state.Clear(i)
		}
	}
	e.cache.report.notGivenBack(e.disk.Key, e.file.Name, cause)
}

// loseWithin is lose for those pieces of payload [off, off+n) that the disk
// does not give back. The next read fetches them.
func (e *entry) loseWithin(off, n int64, cause error) {
	if e.link == nil || errors.Is(cause, errClosed) {
		return // a Local changes nothing
	}
	var lost []int
	for i, end := e.grid.In(off, off+n); i < end; i++ {
		start, size := e.grid.Extent(i)
		buf := buffers.Get(size)
		if e.disk.LoadPayload(start, buf) != nil {
			lost = append(lost, i)
		}
		buffers.Put(buf)
	}
	e.lose(lost, cause)
}
