package registry

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// way is one of the ways in which a blob's bytes get into a registry. Each
// begins with a POST, which opens a session. Large blobs try them in this
// order.
type way int

const (
	// byPieces appends pieces of uploadChunk bytes, each a PATCH with a
	// Content-Range, and ends with a PUT. A break costs one piece.
	byPieces way = iota
	// byStream sends one PATCH without a Content-Range, and a PUT.
	byStream
	// byWhole sends all bytes in the PUT, so the digest must be known.
	byWhole
	// bySmall is byPieces with pieces of smallChunk bytes.
	bySmall
	numWays
)

// wayState is what is known of a registry and a way.
type wayState int

const (
	wayUnknown wayState = iota
	wayOpen             // it took what was sent to find out
	wayDone             // it has stored a blob that came this way
	wayRefused
)

// ways is what one push has learned of a registry. The zero value knows
// nothing. One upload at a time finds out about a way, and those that need
// one that is unknown wait for it: a refusal costs one piece and not one for
// each upload.
type ways struct {
	patched  atomic.Bool // a PATCH was taken
	noExpect atomic.Bool // "Expect: 100-continue" is refused

	mu     sync.Mutex
	known  [numWays]wayState
	asking chan struct{}  // nil, or closed when an upload has found out
	about  way            // which it asks about
	halves bool           // pieces of uploadChunk bytes are refused, half of that is not
	took   [numWays]int64 // bytes of the largest body that was taken
	limit  [numWays]int64 // no body of this many bytes goes this way, for one was refused; 0: none was
	most   int64          // no body of this many bytes is sent, for one was answered 413; 0: none was
	spent  int64          // bytes that were sent to find out, for nothing
	why    *Error         // the last refusal, a 413 before others; nil before the first
}

// enter blocks until a way is known, or the caller is the one that finds
// out. The caller calls leave when it has done with the way.
func (w *ways) enter(ctx context.Context, k way) (leave func(), err error) {
	for {
		w.mu.Lock()
		other, known := w.asking, w.known[k] != wayUnknown
		if !known && other == nil {
			own := make(chan struct{})
			w.asking, w.about = own, k
			w.mu.Unlock()
			return func() { w.leave(own) }, nil
		}
		w.mu.Unlock()
		if known {
			return func() {}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// refused notes how a way was refused.
func (w *ways) refused(e *Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil || w.why.Status != http.StatusRequestEntityTooLarge {
		own := *e
		w.why = &own
	}
}

// refusal is how a way was last refused, as an error of what t is about.
func (w *ways) refusal(t target) *Error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil {
		return t.fail(ErrUnreachable, errors.New("the registry takes the blob in no way"))
	}
	e := *w.why
	e.Op, e.Host, e.What = t.op, t.host, t.what
	return &e
}

// leave lets the next upload find out, unless set has done that.
func (w *ways) leave(own chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking == own {
		close(own)
		w.asking = nil
	}
}

// set notes what was found out.
func (w *ways) set(k way, s wayState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.known[k] = max(w.known[k], s)
	if w.asking != nil && w.about == k {
		close(w.asking)
		w.asking = nil
	}
}

func (w *ways) state(k way) wayState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known[k]
}

// taken notes that a body of n bytes was.
func (w *ways) taken(k way, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.took[k] = max(w.took[k], n)
}

// taking returns how large a body was that was taken this way.
func (w *ways) taking(k way) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.took[k]
}

// limitTo notes that a body of n bytes was refused in a way that has stored
// smaller ones.
func (w *ways) limitTo(k way, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit[k] == 0 || n < w.limit[k] {
		w.limit[k] = n
	}
}

// tooLarge notes that a body of n bytes was answered 413. What is smaller,
// and was never taken, is not tried either, but for pieces of smallChunk.
func (w *ways) tooLarge(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n = min(n, max(int64(smallChunk), slices.Max(w.took[:]))+1)
	if n > 0 && (w.most == 0 || n < w.most) {
		w.most = n
	}
}

// spend notes bytes that were sent for nothing.
func (w *ways) spend(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent += n
}

// left is how many bytes may yet be sent for nothing, so that finding out
// about all ways costs hardly more than one piece.
func (w *ways) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leftLocked()
}

func (w *ways) leftLocked() int {
	const least = 64 << 10
	return int(max(int64(uploadChunk)-w.spent, least))
}

// probe is how many bytes are sent in vain to find out whether a PATCH
// without a Content-Range is taken; 0 where what was taken so far has to do.
func (w *ways) probe() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spent >= int64(uploadChunk) && w.patched.Load() {
		return 0
	}
	return min(w.leftLocked(), uploadChunk/2)
}

// halve makes pieces half as large for the rest of the push. It reports
// whether they were larger.
func (w *ways) halve(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n <= uploadChunk/2 {
		return false
	}
	w.halves = true
	return true
}

// piece is how many bytes go into a PATCH of byPieces or bySmall, for a
// registry that wants at least least; 0 where no size will do.
func (w *ways) piece(k way, least int64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pieceLocked(k, least)
}

func (w *ways) pieceLocked(k way, least int64) int {
	n := int64(uploadChunk)
	switch {
	case k == bySmall && w.known[k] == wayUnknown:
		n = max(min(int64(smallChunk), int64(w.leftLocked())), least)
	case k == bySmall:
		n = max(int64(smallChunk), least)
	case w.known[k] == wayUnknown:
		// Two halves tell whether pieces are taken, and cost one. They are
		// larger than those of bySmall, as some registries take only these.
		n = max(min(n, int64(w.leftLocked()))/2, int64(smallChunk)*3/2, least)
	case w.halves, w.most > 0 && n >= w.most:
		n = max(n/2, least)
	}
	if n > int64(uploadChunk) || w.most > 0 && n >= w.most {
		return 0
	}
	return int(n)
}

// takes reports whether a blob of size bytes may go this way. A negative
// size is not known.
func (w *ways) takes(k way, size int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.known[k] == wayRefused:
		return false
	case k == byPieces || k == bySmall:
		return w.pieceLocked(k, 0) > 0
	}
	fits := func(most int64) bool { return most == 0 || size >= 0 && size < most }
	return fits(w.most) && fits(w.limit[k])
}
