package cache

import (
	"context"
	"errors"
	"sync"
)

// arrived keeps the payload of piece i and hands it to those who wait. A
// disk that does not take it does not fail the readers, and one that does
// not tell yet whether it does is not waited for; late counts what is still
// to be kept, where that is not nil.
func (e *entry) arrived(i int, payload []byte, verified bool, late *sync.WaitGroup) {
	drops := e.drops.Load()
	again, err := e.store(i, payload, verified)
	if err == nil {
		e.land(i, nil)
		return
	}
	data := e.cache.spare.put(e, i, payload)
	e.land(i, data)
	if errors.Is(err, errLooking) {
		e.keepLater(&latePiece{i, data, verified, drops}, again, late)
	}
}

// lateMost bounds the pieces that wait for a disk to be measured, in bytes:
// all that are held in memory do.
const lateMost = spareSize

// latePiece is a piece that was handed over before it is known whether there
// is room for it.
type latePiece struct {
	piece    int
	payload  []byte
	verified bool
	drops    int64 // see entry.drops
}

// keepLater keeps a piece when it is known whether there is room.
func (e *entry) keepLater(p *latePiece, again <-chan struct{}, late *sync.WaitGroup) {
	n := min(int64(len(p.payload)), lateMost)
	if !e.cache.late.TryAcquire(n) {
		return
	}
	if !e.use() {
		e.cache.late.Release(n)
		return
	}
	if late != nil {
		late.Add(1)
	}
	go func() {
		defer e.unuse()
		defer e.cache.late.Release(n)
		if late != nil {
			defer late.Done()
		}
		select {
		case <-again:
			e.keep(p)
		case <-e.ctx.Done():
		}
	}()
}

// keep keeps a piece that nobody waits for, unless it has come once more, or
// may be of bytes that were found wrong, meanwhile.
func (e *entry) keep(p *latePiece) {
	i := p.piece
	if !p.verified { // it may have been found right
		var err error
		if p.verified, err = e.checkPiece(i, p.payload); err != nil {
			return
		}
	}
	dropped := func() bool { return !p.verified && e.drops.Load() != p.drops }
	if dropped() || !e.state.has(i) && e.storeWaiting(e.ctx, i, p.payload, p.verified) != nil {
		return
	}
	if dropped() && !e.state.verified(i) {
		e.state.clear(i)
		return
	}
	e.cache.spare.drop(e, i, i+1)
	e.land(i, nil)
	e.checkComplete()
}

// storeWaiting is store for who need not go on before it is known whether
// there is room.
func (e *entry) storeWaiting(ctx context.Context, i int, payload []byte, verified bool) error {
	for {
		again, err := e.store(i, payload, verified)
		if again == nil {
			return err
		}
		select {
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
		if e.state.has(i) {
			return nil // it has come once more meanwhile
		}
	}
}
