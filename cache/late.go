package cache

import (
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
			e.backlog.missed(e.keepHeld(p))
		case <-e.ctx.Done():
		}
	}()
}
