package cache

import (
	"context"
	"sync"
)

// once admits one fetch of a part with a given digest at a time, for the
// process. The second waits, and then copies.
type once struct {
	mu       sync.Mutex               // never held over I/O
	byDigest map[string]chan struct{} // parts on their way
}

// begin blocks until it is the caller's turn. done ends the turn; it is nil if
// ctx has ended.
func (o *once) begin(ctx context.Context, digest string) (done func()) {
	for {
		o.mu.Lock()
		other := o.byDigest[digest]
		if other == nil {
			if o.byDigest == nil {
				o.byDigest = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			o.byDigest[digest] = mine
			o.mu.Unlock()
			return func() {
				o.mu.Lock()
				delete(o.byDigest, digest)
				o.mu.Unlock()
				close(mine)
			}
		}
		o.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil
		}
	}
}
