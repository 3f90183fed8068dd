package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/overlay"
)

// ErrTimeout is the error of a read whose bytes did not come within the read
// timeout.
var ErrTimeout = errors.New("registry did not answer in time")

// flights are the pieces of a file that are on their way or queued, and the
// users of its entry. Jobs, streams and proofs are users; the entry is closed
// when the last of them has ended.
type flights struct {
	entry *entry
	queue *queue
	users sync.WaitGroup

	mu      sync.Mutex // never held over I/O
	closing bool
	byPiece map[int]*flight
	streams map[int]bool // parts that are being streamed
	bad     map[int]int  // pieces whose bytes were wrong, how often
}

func (f *flights) init(e *entry) {
	f.entry, f.queue = e, e.cache.queue
	f.byPiece, f.streams, f.bad = map[int]*flight{}, map[int]bool{}, map[int]int{}
}

// flight is one piece on its way. All fields but done are under flights.mu
// until done is closed; err and data may be read after that.
type flight struct {
	done    chan struct{}
	err     error
	data    []byte // the payload, if it is not on disk
	waiters int
	since   time.Time // when the first of them came
	running bool      // a job, a stream or a peer works on it; else it is queued
	urgent  bool      // queued as demand
	paused  bool      // queued only after a pause, because a try failed
	alone   bool      // fetched without the lock among processes
	cause   error     // why the last try failed

	watchers []chan<- landing // receive the end; each has room for that
}

// pending is a flight somebody waits for.
type pending struct {
	piece  int
	flight *flight
}

// landing is the end of a piece's flight.
type landing struct {
	piece int
	err   error
}

// use adds a user of the entry. It reports false if the entry is being closed.
func (f *flights) use() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.useLocked()
}

func (f *flights) useLocked() bool {
	if f.closing {
		return false
	}
	f.users.Add(1)
	return true
}

// unuse ends a use.
func (f *flights) unuse() { f.users.Done() }

// shut ends the flights that are queued. Nobody becomes a user after it.
func (f *flights) shut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closing = true
	for i, fl := range f.byPiece {
		if !fl.running {
			f.landLocked(i, errClosed, nil)
		}
	}
}

// errClosed is the error of reads of an entry that is closed.
var errClosed = fs.ErrClosed

// flightLocked returns the flight of piece i, and begins it if there is none.
func (f *flights) flightLocked(i int) *flight {
	fl := f.byPiece[i]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.byPiece[i] = fl
	}
	return fl
}

// join finds or begins the flights of the missing pieces of [from, to), and
// counts the caller among their waiters. Pieces that the overlay holds are added
// to held.
func (f *flights) join(from, to int, held overlay.Pieces) ([]pending, overlay.Pieces, error) {
	var waits []pending
	var want []span
	recorded := true // all that is wanted
	e := f.entry
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return nil, held, errClosed
	}
	for i := from; i < to; i++ {
		if _, have := held[i]; have || e.state.Has(i) {
			continue
		}
		if data := e.held.Get(i); data != nil {
			held = held.With(i, data)
			continue
		}
		fl := f.flightLocked(i)
		if fl.waiters++; fl.waiters == 1 {
			fl.since = time.Now()
		}
		waits = append(waits, pending{i, fl})
		// A new reader tries at once, even if others wait for a pause.
		if !fl.running && (!fl.urgent || fl.paused) {
			fl.urgent, fl.paused = true, false
			want = appendPiece(want, e, i)
			recorded = recorded && len(fl.watchers) > 0
		}
	}
	f.mu.Unlock()
	if !recorded {
		f.queue.surprise()
	}
	f.queue.push(demanded, want...)
	return waits, held, nil
}

// appendPiece adds piece i to the last span if it follows that, else as a span
// of its own.
func appendPiece(spans []span, e *entry, i int) []span {
	if n := len(spans); n > 0 && spans[n-1].to == i {
		spans[n-1].to++
		return spans
	}
	return append(spans, span{entry: e, from: i, to: i + 1})
}

// elsewhere is how often a reader checks whether another process has brought
// the piece that a request of this one still waits for.
const elsewhere = time.Second

// wait blocks until a flight has ended, and returns its error, or until ctx
// ends.
func (f *flights) wait(ctx context.Context, w pending) error {
	select {
	case <-w.flight.done:
		return w.flight.err
	default:
	}
	tick := time.NewTicker(elsewhere)
	defer tick.Stop()
	for {
		select {
		case <-w.flight.done:
			return w.flight.err
		case <-tick.C:
			if f.entry.state.Has(w.piece) {
				f.land(w.piece, nil)
			}
		case <-ctx.Done():
			f.mu.Lock()
			w.flight.waiters--
			last := w.flight.cause
			f.mu.Unlock()
			return f.ended(ctx, last)
		}
	}
}

// ended returns the error of a read whose ctx has ended. last is why what it
// waits for did not come, if that is known.
func (f *flights) ended(ctx context.Context, last error) error {
	if last == nil {
		last = f.entry.link.Trouble()
	}
	err := context.Cause(ctx)
	if errors.Is(err, ErrTimeout) && last != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return err
}

// leave takes the caller from the waiters.
func (f *flights) leave(waits []pending) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range waits {
		w.flight.waiters--
	}
}

// watch sends the ends of the flights of pieces to w, which must have room for
// them. It returns the pieces that are still to be queued. A watcher does not
// count as a waiter: a reader that joins the flight queues the piece as demand.
func (f *flights) watch(pieces []int, w chan<- landing) (want []int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, errClosed
	}
	for _, i := range pieces {
		if f.entry.state.Has(i) { // since it was looked for
			w <- landing{piece: i}
			continue
		}
		fl := f.flightLocked(i)
		fl.watchers = append(fl.watchers, w)
		if !fl.running && !fl.urgent {
			want = append(want, i)
		}
	}
	return want, nil
}

// waitingFor is a piece that readers wait for.
type waitingFor struct {
	piece   int
	waiters int
	since   time.Time
	cause   error // why the last try failed
}

// waiting returns the pieces that readers wait for, in order.
func (f *flights) waiting() (all []waitingFor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, fl := range f.byPiece {
		if fl.waiters > 0 {
			all = append(all, waitingFor{i, fl.waiters, fl.since, fl.cause})
		}
	}
	slices.SortFunc(all, func(a, b waitingFor) int { return cmp.Compare(a.piece, b.piece) })
	return all
}

// running reports whether anything is being fetched.
func (f *flights) running() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range f.byPiece {
		if fl.running {
			return true
		}
	}
	return len(f.streams) > 0
}

// landLocked ends the flight of piece i, if there is one.
func (f *flights) landLocked(i int, err error, data []byte) {
	fl := f.byPiece[i]
	if fl == nil {
		return
	}
	delete(f.byPiece, i)
	fl.err, fl.data = err, data
	close(fl.done)
	for _, w := range fl.watchers {
		w <- landing{i, err}
	}
}

// land ends the flight of piece i well. data is its payload if that is not on
// disk.
func (f *flights) land(i int, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.landLocked(i, nil, data)
}

// landed reports whether piece i has no flight any more, so that no job need
// bring it. If the piece is present, landed ends its flight first.
func (f *flights) landed(i int) bool {
	if f.entry.state.Has(i) {
		f.land(i, nil)
	}
	return !f.flying(i, i+1)
}

// awaited reports whether a reader waits for piece i.
func (f *flights) awaited(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.byPiece[i]
	return fl != nil && fl.waiters > 0
}

// flying reports whether any of pieces [from, to) is on its way, or queued.
func (f *flights) flying(from, to int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if to-from == 1 {
		return f.byPiece[from] != nil
	}
	for i := range f.byPiece {
		if i >= from && i < to {
			return true
		}
	}
	return false
}

// goAlone has piece i fetched without the lock among processes.
func (f *flights) goAlone(i int) {
	f.mu.Lock()
	if fl := f.byPiece[i]; fl != nil {
		fl.alone = true
	}
	f.mu.Unlock()
	f.requeue(i, i+1)
}

// requeue gives up the running flights of pieces [from, to): those that
// somebody waits for are queued again, at once.
func (f *flights) requeue(from, to int) {
	f.mu.Lock()
	want := f.looseLocked(from, to, nil)
	f.mu.Unlock()
	f.queue.push(demanded, want...)
}

// fail ends the running flights of pieces [from, end) with err, and gives up
// those of [end, to). It returns what is to be queued again.
func (f *flights) fail(from, to int, err error, lastTry func(bad map[int]int) (end int)) []span {
	f.mu.Lock()
	defer f.mu.Unlock()
	for end := lastTry(f.bad); from < end; from++ {
		f.landLocked(from, err, nil)
	}
	return f.looseLocked(from, to, err)
}

// looseLocked ends those of the running flights of [from, to) for which
// nobody waits and returns the rest as spans to be queued as demand.
func (f *flights) looseLocked(from, to int, cause error) []span {
	var want []span
	for i := from; i < to; i++ {
		fl := f.byPiece[i]
		switch {
		case fl == nil || !fl.running:
		case f.closing:
			f.landLocked(i, errClosed, nil)
		case fl.waiters == 0:
			f.landLocked(i, cause, nil)
		default:
			fl.running, fl.urgent, fl.paused = false, true, cause != nil
			if cause != nil {
				fl.cause = cause
			}
			want = appendPiece(want, f.entry, i)
		}
	}
	return want
}

// queueMissing queues what is missing of pieces [from, to), to be asked for in
// requests of that many bytes; 0: as it suits the link.
func (f *flights) queueMissing(p priority, from, to int, request int64) {
	var want []span
	for i := from; i < to; i++ {
		if w := f.entry.state.Word(i); !w.Present() {
			want = appendPiece(want, f.entry, i)
		}
	}
	for k := range want {
		want[k].request = request
	}
	f.queue.push(p, want...)
}

// queueLater queues spans after a pause.
func (f *flights) queueLater(p priority, pause time.Duration, want []span) {
	if len(want) == 0 || !f.use() {
		return
	}
	go func() {
		defer f.unuse()
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			f.queue.push(p, want...)
		case <-f.entry.ctx.Done():
		}
	}()
}

// wantedLocked reports whether piece i is neither present nor on its way.
func (f *flights) wantedLocked(i int) bool {
	if f.entry.state.Has(i) {
		f.landLocked(i, nil, nil)
		return false
	}
	if data := f.entry.held.Peek(i); data != nil {
		f.landLocked(i, nil, data)
		return false
	}
	fl := f.byPiece[i]
	return fl == nil || !fl.running
}

// every calls do at intervals, as a user of the entry, until it returns false or the
// entry is being closed. ok is false if it is already: then do is not called.
func (f *flights) every(pause time.Duration, do func() (again bool)) (ok bool) {
	if !f.use() {
		return false
	}
	go func() {
		defer f.unuse()
		t := time.NewTicker(pause)
		defer t.Stop()
		for again := true; again; {
			select {
			case <-t.C:
				again = do()
			case <-f.entry.ctx.Done():
				return
			}
		}
	}()
	return true
}

// beginStream claims the stream of a part. It reports false if that runs
// already, or the entry is being closed. The stream is a user of the entry.
func (f *flights) beginStream(part int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.streams[part] || !f.useLocked() {
		return false
	}
	f.streams[part] = true
	return true
}

func (f *flights) streaming(part int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams[part]
}

func (f *flights) streamEnded(part int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.streams, part)
}
