package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// ErrTimeout says that missing bytes did not come within the read timeout.
var ErrTimeout = errors.New("registry did not answer in time")

// flight is one piece on its way. All fields but done are under entry.mu
// until done is closed; err and data may be read after that.
type flight struct {
	done    chan struct{}
	err     error
	data    []byte // the payload, when it could not be kept on disk
	waiters int
	since   time.Time // when the first of them came
	job     *job      // the last that worked on it
	running bool      // a job, a stream or a peer works on it; else it is queued
	urgent  bool      // queued as demand
	paused  bool      // queued only after a pause, because a try failed
	alone   bool      // fetched without the lock among processes
	cause   error     // why the last try failed

	watchers []chan<- landing // told of the end; each has room for that
}

// pending is a flight somebody waits for.
type pending struct {
	piece  int
	flight *flight
}

// demand waits until pieces [from, to) are present. What could not be kept
// on disk is returned, by piece. It ends early with ctx; the fetch goes on
// for others.
func (e *entry) demand(ctx context.Context, from, to int) (unkept map[int][]byte, err error) {
	if t := e.cache.opts.ReadTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, ErrTimeout)
		defer cancel()
	}
	return e.obtain(ctx, from, to)
}

// obtain is demand for as long as ctx lives.
func (e *entry) obtain(ctx context.Context, from, to int) (unkept map[int][]byte, err error) {
	for {
		for i := from; i < to; i++ {
			if e.state.suspect(i) {
				e.recheck(i)
			}
		}
		var waits []pending
		waits, unkept, err = e.join(from, to, unkept)
		if err != nil || len(waits) == 0 {
			return unkept, err
		}
		for n, w := range waits {
			if err := e.wait(ctx, w); err != nil {
				e.leave(waits[n+1:])
				return unkept, err
			}
			if w.flight.data != nil {
				if unkept == nil {
					unkept = map[int][]byte{}
				}
				unkept[w.piece] = w.flight.data
			}
		}
	}
}

// join finds or starts the flights of what is missing of [from, to) and
// counts the caller among those who wait. What is held in memory only is
// added to unkept.
func (e *entry) join(from, to int, unkept map[int][]byte) ([]pending, map[int][]byte, error) {
	var waits []pending
	var want []span
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil, unkept, fs.ErrClosed
	}
	if err := e.condemnedLocked(from, to); err != nil {
		e.mu.Unlock()
		return nil, unkept, err
	}
	for i := from; i < to; i++ {
		if _, have := unkept[i]; have || e.state.has(i) {
			continue
		}
		if data := e.cache.spare.get(e, i); data != nil {
			if unkept == nil {
				unkept = map[int][]byte{}
			}
			unkept[i] = data
			continue
		}
		fl := e.flights[i]
		if fl == nil {
			fl = &flight{done: make(chan struct{})}
			e.flights[i] = fl
		}
		if fl.waiters++; fl.waiters == 1 {
			fl.since = time.Now()
		}
		waits = append(waits, pending{i, fl})
		// Who comes anew tries at once, whatever others wait for.
		if !fl.running && (!fl.urgent || fl.paused) {
			fl.urgent, fl.paused = true, false
			want = appendPiece(want, e, i)
		}
	}
	e.mu.Unlock()
	e.cache.queue.push(demanded, want...)
	return waits, unkept, nil
}

// appendPiece adds piece i to the last span where it follows it, else a
// span of its own.
func appendPiece(spans []span, e *entry, i int) []span {
	if n := len(spans); n > 0 && spans[n-1].to == i {
		spans[n-1].to++
		return spans
	}
	return append(spans, span{entry: e, from: i, to: i + 1})
}

func (e *entry) wait(ctx context.Context, w pending) error {
	select {
	case <-w.flight.done:
		return w.flight.err
	default:
	}
	look := time.NewTicker(elsewhere)
	defer look.Stop()
	for {
		select {
		case <-w.flight.done:
			return w.flight.err
		case <-look.C:
			if e.state.has(w.piece) {
				e.land(w.piece, nil)
			}
		case <-ctx.Done():
			return e.gaveUp(ctx, w)
		}
	}
}

// elsewhere is how often a reader looks whether another process has brought
// what a request of this one still waits for.
const elsewhere = time.Second

// gaveUp takes a reader whose ctx has ended from those who wait.
func (e *entry) gaveUp(ctx context.Context, w pending) error {
	e.mu.Lock()
	w.flight.waiters--
	last := w.flight.cause
	e.mu.Unlock()
	return e.ended(ctx, last)
}

// ended is the error of a read whose ctx has ended; last is why what it
// waits for did not come, where that is known.
func (e *entry) ended(ctx context.Context, last error) error {
	if last == nil {
		last = e.link.Trouble()
	}
	err := context.Cause(ctx)
	if errors.Is(err, ErrTimeout) && last != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// leave takes the caller from those who wait.
func (e *entry) leave(waits []pending) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range waits {
		w.flight.waiters--
	}
}

// landLocked ends the flight of piece i, if there is one.
func (e *entry) landLocked(i int, err error, data []byte) {
	fl := e.flights[i]
	if fl == nil {
		return
	}
	delete(e.flights, i)
	fl.err, fl.data = err, data
	close(fl.done)
	for _, w := range fl.watchers {
		w <- landing{i, err}
	}
}

// land ends the flight of piece i well. data is its payload if it could
// not be kept.
func (e *entry) land(i int, data []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.landLocked(i, nil, data)
}

// requeue gives up the running flights of pieces [from, to): those that
// somebody waits for are queued again, at once.
func (e *entry) requeue(from, to int) {
	e.mu.Lock()
	want := e.looseLocked(from, to, nil)
	e.mu.Unlock()
	e.cache.queue.push(demanded, want...)
}

// looseLocked ends those of the running flights of [from, to) for which
// nobody waits and returns the rest as spans to be queued as demand.
func (e *entry) looseLocked(from, to int, cause error) []span {
	var want []span
	for i := from; i < to; i++ {
		fl := e.flights[i]
		switch {
		case fl == nil || !fl.running:
		case e.closing:
			e.landLocked(i, fs.ErrClosed, nil)
		case fl.waiters == 0:
			e.landLocked(i, cause, nil)
		default:
			fl.running, fl.urgent, fl.paused = false, true, cause != nil
			if cause != nil {
				fl.cause = cause
			}
			want = appendPiece(want, e, i)
		}
	}
	return want
}
