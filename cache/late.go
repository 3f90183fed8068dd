package cache

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// arrived keeps the payload of piece i and hands it to those who wait. A
// disk that does not take it does not fail the readers, and one that does
// not tell yet whether it does is not waited for; late counts what is still
// to be kept, where that is not nil. by is where the payload comes from.
func (e *entry) arrived(i int, payload []byte, verified bool, by string, late *sync.WaitGroup) {
	e.arrive(&incoming{piece: i, payload: payload, verified: verified, by: by}, late)
}

// arrive is arrived for a piece of which more is known.
func (e *entry) arrive(p *incoming, late *sync.WaitGroup) {
	i, payload, verified, by := p.piece, p.payload, p.verified, p.by
	sum := xxhash.Sum64(payload)
	if word, other := e.state.otherHanded(i, sum); other {
		e.discard(i, i+1, found{by: by, word: word}) // somebody has read that
	} else if held := e.cache.spare.peek(e, i); held != nil && !bytes.Equal(held, payload) {
		e.discard(i, i+1, found{by: by})
	}
	p.drops = e.drops.Load()
	again, err := e.store(p)
	switch {
	case err == nil:
		e.land(i, nil)
		return
	case errors.Is(err, errOvertaken):
		e.requeue(i, i+1) // to be looked for, and if need be fetched again
		return
	}
	data := e.cache.spare.put(e, i, payload)
	e.land(i, data)
	if errors.Is(err, errLooking) {
		p.payload, p.by, p.from = data, byLate, nil
		e.keepLater(p, again, late)
	} else if !verified {
		e.hand(i, sum)
	}
}

// hand notes what is handed over of piece i and not on disk: if other bytes
// come for it later, copies of these have to be dropped. Where the disk has no
// room for that, it is not known.
func (e *entry) hand(i int, sum uint64) {
	if e.state.readOnly || e.state.reserve(i) == nil {
		e.state.hand(i, sum)
	}
}

// lateMost bounds the pieces that wait for a disk to be measured, in bytes:
// all that are held in memory do.
const lateMost = spareSize

// keepLater keeps a piece that was handed over before it was known whether
// there is room for it, when that is known.
func (e *entry) keepLater(p *incoming, again <-chan struct{}, late *sync.WaitGroup) {
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
		if !p.verified {
			e.hand(p.piece, p.sum)
		}
		select {
		case <-again:
			e.keep(p)
		case <-e.ctx.Done():
		}
	}()
}

// keep keeps a piece that nobody waits for, unless it may be of bytes that
// were found wrong meanwhile. What came once more and is other bytes is
// replaced: some readers have these, and some those.
func (e *entry) keep(p *incoming) {
	i := p.piece
	if !p.verified { // it may have been found right
		var err error
		if p.verified, err = e.checkPiece(i, p.payload); err != nil {
			return
		}
	}
	err := e.storeWaiting(e.ctx, p)
	if errors.Is(err, errOvertaken) {
		e.cache.spare.drop(e, i, i+1)
	}
	if err != nil {
		return
	}
	e.cache.spare.drop(e, i, i+1)
	e.land(i, nil)
	e.checkComplete()
}

// storeWaiting is store for who need not go on before it is known whether
// there is room.
func (e *entry) storeWaiting(ctx context.Context, p *incoming) error {
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
