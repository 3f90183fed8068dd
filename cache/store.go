package cache

import (
	"context"
	"errors"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// errNotKept is the error of a piece that is not put on disk.
var errNotKept = errors.New("the file takes no data")

// errStale is the error of a held piece that must come anew.
var errStale = errors.New("the piece may be wrong by now")

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

// keepHeld writes a held piece to disk, unless it no longer has its digest or
// pieces were taken back since it came: then it is not held any more, and the error is
// errStale. If other bytes are on disk by then, they are discarded first: readers may
// have got either.
func (e *entry) keepHeld(p *disk.Incoming) (err error) {
	i := p.Piece
	if !p.Verified { // it may have been found right
		if p.Verified, err = e.checkPiece(i, p.Payload); err != nil {
			e.held.Drop(i)
			return errStale
		}
	}
	switch err = e.storeWaiting(e.ctx, p); {
	case err == nil:
		e.held.Drop(i)
		e.flights.land(i, nil)
		e.checkComplete()
	case errors.Is(err, disk.ErrOvertaken):
		e.held.Drop(i)
		return errStale
	}
	return err
}
