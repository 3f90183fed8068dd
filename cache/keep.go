package cache

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// errNotKept is the error of a piece that is not put on disk.
var errNotKept = errors.New("the file takes no data")

// keep writes a piece that has arrived, and hands it to its waiting readers. A
// disk that does not take it does not fail the readers, and a disk that takes
// long is not waited for: they get the piece from memory. later counts what is
// still to be written, and may be nil.
func (e *entry) keep(p *disk.Incoming, later *sync.WaitGroup) {
	i := p.Piece
	if word, other := e.state.OtherHanded(i, p.Sum()); other {
		e.disk.Discard(i, i+1, disk.Found{By: p.By, Word: word}) // somebody has read that
	} else if held := e.held.Peek(i); held != nil && !bytes.Equal(held, p.Payload) {
		e.disk.Discard(i, i+1, disk.Found{By: p.By})
	}
	p.Drops = e.disk.Drops()
	// What comes as part of a whole blob, or to be hashed with all of its part, would
	// have to be fetched again before it is read.
	p.Spare = p.By == disk.ByFetch && (p.Verified || e.link.Proven()) && !e.link.IgnoresRanges() && (p.Read || e.flights.awaited(i))
	again, err := e.store(p)
	switch {
	case err == nil:
		if p.Read {
			e.passing.add(i, int64(len(p.Payload)))
		}
		e.flights.land(i, nil)
		return
	case errors.Is(err, disk.ErrOvertaken):
		e.flights.requeue(i, i+1) // to be looked for, and if need be fetched again
		return
	}
	data := e.held.Put(i, p.Payload)
	e.flights.land(i, data)
	if errors.Is(err, quota.ErrMeasuring) {
		p.Payload, p.By, p.Clone = data, disk.ByLate, nil
		e.keepLater(p, again, later)
	} else if !p.Verified {
		e.state.Hand(i, p.Sum())
	}
}

// store puts a piece where it belongs in the data file and marks it present.
// Its error means that the piece could not be kept, not that it is wrong. If
// that is quota.ErrMeasuring, again is closed when store can be called again.
func (e *entry) store(p *disk.Incoming) (again <-chan struct{}, err error) {
	if e.unkept() {
		if disk.IsReadOnly(e.refused) {
			e.cache.report.notKept(e.file.Name, e.refused)
		}
		return nil, errNotKept
	}
	if e.held.Distrusts(p.Piece) {
		return nil, errNotKept
	}
	if _, kept := e.disk.MakeWay(p); kept {
		return nil, nil
	}
	if p.Spare {
		done, ok := e.cache.pace.admit()
		if !ok {
			e.cache.counts.notKept.Add(int64(len(p.Payload)))
			e.cache.report.notKept(e.file.Name, errSlowDisk)
			e.refill.later(e)
			return nil, errSlowDisk
		}
		defer done()
	}
	again, err = e.cache.quota.Take(e.cache.ctx, e.grid.RoomFor(p.Piece, int64(len(p.Payload))))
	if err != nil {
		if errors.Is(err, quota.ErrFull) {
			e.cache.report.notKept(e.file.Name, err)
		}
		return again, err
	}
	if err = e.cache.pace.time(func() error { return e.disk.Write(p) }); err != nil && !errors.Is(err, disk.ErrOvertaken) {
		e.cache.quota.Refused()
		e.cache.report.notKept(e.file.Name, err)
	}
	return nil, err
}

// storeWaiting is store for a caller that need not go on before it is known
// whether there is room.
func (e *entry) storeWaiting(ctx context.Context, p *disk.Incoming) error {
	for {
		again, err := e.store(p)
		if again == nil {
			return err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keepLater writes a piece that was handed over before it was known whether
// there is room for it, when that is known.
func (e *entry) keepLater(p *disk.Incoming, again <-chan struct{}, later *sync.WaitGroup) {
	done, ok := e.held.BeginLater(int64(len(p.Payload)))
	if !ok {
		if !p.Verified {
			e.state.Hand(p.Piece, p.Sum())
		}
		return
	}
	if !e.flights.use() {
		done()
		return
	}
	if later != nil {
		later.Add(1)
	}
	go func() {
		defer e.flights.unuse()
		defer done()
		if later != nil {
			defer later.Done()
		}
		if !p.Verified {
			e.state.Hand(p.Piece, p.Sum())
		}
		select {
		case <-again:
			e.keepHeld(p)
		case <-e.ctx.Done():
		}
	}()
}

// keepHeld writes a held piece to disk, unless it no longer has its digest or
// pieces were taken back since it came. If other bytes are on disk by then, they
// are discarded first: readers may have got either.
func (e *entry) keepHeld(p *disk.Incoming) {
	i := p.Piece
	if !p.Verified { // it may have been found right
		var err error
		if p.Verified, err = e.checkPiece(i, p.Payload); err != nil {
			return
		}
	}
	err := e.storeWaiting(e.ctx, p)
	if err == nil || errors.Is(err, disk.ErrOvertaken) {
		e.held.Drop(i)
	}
	if err == nil {
		e.flights.land(i, nil)
		e.checkComplete()
	}
}
