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
	again, err := e.store(i, payload, verified)
	if err == nil {
		e.land(i, nil)
		return
	}
	data := e.cache.spare.put(e, i, payload)
	e.land(i, data)
	if errors.Is(err, errLooking) {
		e.keepLater(i, data, verified, again, late)
	}
}

// lateMost bounds the pieces that wait for a disk to be measured, in bytes.
const lateMost = 32 << 20

// keepLater keeps a piece when it is known whether there is room.
func (e *entry) keepLater(i int, data []byte, verified bool, again <-chan struct{}, late *sync.WaitGroup) {
	n := min(int64(len(data)), lateMost)
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
		if !verified { // it may have been found right meanwhile
			var err error
			if verified, err = e.checkPiece(i, data); err != nil {
				return
			}
		}
		if e.storeWaiting(e.ctx, i, data, verified, again) == nil {
			e.cache.spare.drop(e, i, i+1)
			e.land(i, nil)
			e.checkComplete()
		}
	}()
}

// storeWaiting is store for who need not go on before it is known whether
// there is room. again is what is waited for first; nil: nothing.
func (e *entry) storeWaiting(ctx context.Context, i int, payload []byte, verified bool, again <-chan struct{}) error {
	for {
		if again != nil {
			select {
			case <-again:
			case <-ctx.Done():
				return ctx.Err()
			}
			if e.state.has(i) {
				return nil // it has come once more meanwhile
			}
		}
		var err error
		if again, err = e.store(i, payload, verified); again == nil {
			return err
		}
	}
}
