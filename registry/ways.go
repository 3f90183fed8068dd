package registry

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// way is one of the ways to upload a blob. Each begins with a POST, which
// opens a session. Large blobs try them in this order.
type way int

const (
	// byChunks appends chunks of uploadChunk bytes, each a PATCH with a
	// Content-Range, and ends with a PUT. A break costs one chunk.
	byChunks way = iota
	// byStream sends one PATCH without a Content-Range, and a PUT.
	byStream
	// byWhole sends all bytes in the PUT, so the digest must be known.
	byWhole
	// bySmall is byChunks with chunks of smallChunk bytes.
	bySmall
	numWays
)

// wayState is what is known about a way and a registry.
type wayState int

const (
	wayUnknown wayState = iota
	wayOpen             // the registry accepted the first bytes sent this way
	wayDone             // the registry has stored a blob that was sent this way
	wayRefused
)

// ways records what one push has learned about a registry. The zero value
// knows nothing. One upload at a time tries an unknown way, and others that
// need that way wait for the result: a refusal costs one chunk, not one for
// each upload.
type ways struct {
	patched  atomic.Bool // a PATCH was accepted
	noExpect atomic.Bool // "Expect: 100-continue" is refused

	mu     sync.Mutex
	known  [numWays]wayState
	asking chan struct{}  // nil, or closed when an upload has found out
	about  way            // the way that is being tried
	halves bool           // chunks of uploadChunk bytes are refused, half as large ones are not
	took   [numWays]int64 // size of the largest accepted body
	limit  [numWays]int64 // smallest refused body; larger ones do not go this way; 0 if none was refused
	most   int64          // smallest body that was answered 413; 0 if none was
	spent  int64          // bytes sent in vain to find out
	why    *Error         // the last refusal, a 413 before others; nil before the first
}

// enter blocks until the state of a way is known, or the caller is the one
// to find out. The caller calls leave when it no longer uses the way.
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

// refused records the refusal of a way.
func (w *ways) refused(e *Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil || w.why.Status != http.StatusRequestEntityTooLarge {
		own := *e
		w.why = &own
	}
}

// refusal returns the last refusal of a way as an error about t.
func (w *ways) refusal(t target) *Error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil {
		return t.fail(ErrUnreachable, errors.New("the registry refuses every way to upload the blob"))
	}
	e := *w.why
	e.Op, e.Host, e.What = t.op, t.host, t.what
	return &e
}

// leave lets the next upload find out, unless set was called.
func (w *ways) leave(own chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asking == own {
		close(own)
		w.asking = nil
	}
}

// set records the state of a way.
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

// taken records that a body of n bytes was accepted.
func (w *ways) taken(k way, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.took[k] = max(w.took[k], n)
}

// taking returns the size of the largest body accepted in this way.
func (w *ways) taking(k way) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.took[k]
}

// limitTo records that a body of n bytes was refused in a way that has
// stored smaller ones.
func (w *ways) limitTo(k way, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.limit[k] == 0 || n < w.limit[k] {
		w.limit[k] = n
	}
}

// tooLarge records that a body of n bytes was answered 413. Smaller sizes
// that were never accepted are not tried either, except chunks of
// smallChunk.
func (w *ways) tooLarge(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n = min(n, max(int64(smallChunk), slices.Max(w.took[:]))+1)
	if n > 0 && (w.most == 0 || n < w.most) {
		w.most = n
	}
}

// spend records bytes that were sent in vain.
func (w *ways) spend(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spent += n
}

// left returns how many more bytes may be sent in vain, so that finding out
// about all ways costs hardly more than one chunk.
func (w *ways) left() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leftLocked()
}

func (w *ways) leftLocked() int {
	const least = 64 << 10
	return int(max(int64(uploadChunk)-w.spent, least))
}

// probe returns how many bytes to send in vain to find out whether a PATCH
// without a Content-Range is accepted, or 0 to rely on what was accepted so
// far.
func (w *ways) probe() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spent >= int64(uploadChunk) && w.patched.Load() {
		return 0
	}
	return min(w.leftLocked(), uploadChunk/2)
}

// halve halves the size of chunks for the rest of the push. It reports
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

// chunk returns how many bytes go into a PATCH of byChunks or bySmall, for a
// registry that wants at least least bytes; 0 if no size fits.
func (w *ways) chunk(k way, least int64) int {
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
		// Two halves show whether chunks are accepted, and cost one. They
		// are larger than those of bySmall, because some registries take
		// only these.
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
// size means unknown.
func (w *ways) takes(k way, size int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.known[k] == wayRefused:
		return false
	case k == byChunks || k == bySmall:
		return w.pieceLocked(k, 0) > 0
	}
	fits := func(most int64) bool { return most == 0 || size >= 0 && size < most }
	return fits(w.most) && fits(w.limit[k])
}
