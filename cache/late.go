package cache

import (
	"errors"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

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
