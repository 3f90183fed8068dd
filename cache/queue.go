package cache

import (
	"context"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// priority says whose pieces go first: what a reader waits for, then what
// it will want next, then what readers wanted when it was recorded, then what
// nobody has asked for yet.
type priority int

const (
	demanded priority = iota
	ahead
	replayed
	prefetched
	priorities
)

// Bounds of one request for raw pieces.
const (
	requestLeast = 1 << 20
	requestMost  = 16 << 20
	// prefetchMost bounds requests that no reader has caused. It is small, so
	// that a reader who comes to wait for their bytes, or for their
	// connection, does not wait long.
	prefetchMost = 4 << 20
)

// yieldFor is how long prefetching keeps to a few connections after a
// reader had to wait.
const yieldFor = 500 * time.Millisecond

// span is a run of pieces [from, to) of one file that somebody wants.
type span struct {
	entry    *entry
	from, to int
	request  int64 // bytes to ask for at a time; 0: as it suits the link
}

// job is one request: pieces [from, to) of one part. Their flights are
// running, and the entry is in use.
type job struct {
	entry    *entry
	part     int
	from, to int
	priority priority
	stream   bool // the part is fetched from its start to its end
	alone    bool // do not ask other processes
	ctx      context.Context
	cancel   context.CancelCauseFunc
	adopted  bool // its body lives on in a stream, and ctx with it
}

// queue decides what is fetched next and bounds how much at a time.
type queue struct {
	limit int
	start func(*job)
	hold  func() bool // nothing is to be replayed or prefetched now; dispatch is called when that ends
	jobs  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	running int
	waited  time.Time // when a reader last had to wait
	spans   [priorities][]span
}

func newQueue(limit int, start func(*job), hold func() bool) *queue {
	return &queue{limit: limit, start: start, hold: hold}
}

// push queues spans, after those of the same priority.
func (q *queue) push(p priority, spans ...span) {
	if len(spans) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if p == demanded {
		q.waited = time.Now()
	}
	q.spans[p] = append(q.spans[p], spans...)
	q.dispatchLocked()
}

// dispatch starts what may start.
func (q *queue) dispatch() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dispatchLocked()
}

// close waits for the jobs that run; no other starts.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.jobs.Wait()
}

// busy says that somebody waits for bytes, or soon will.
func (q *queue) busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running > 0
}

// roomLocked is how many requests of a priority may start now. The lower
// ones leave some to those above them.
func (q *queue) roomLocked(p priority, l *transport.Link) int {
	limit := q.limit
	switch {
	case p == ahead:
		limit = min(limit-1, l.Connections(limit))
	case p >= replayed && q.hold():
		return 0
	case p == replayed:
		limit -= 3
	case p == prefetched && time.Since(q.waited) < yieldFor:
		limit /= 4
	case p == prefetched:
		limit -= 3
	}
	return max(1, limit) - q.running
}

func (q *queue) dispatchLocked() {
	for p := demanded; p < priorities && !q.closed; p++ {
		for len(q.spans[p]) > 0 {
			s := q.spans[p][0]
			room := q.roomLocked(p, s.entry.link)
			if room <= 0 {
				break
			}
			j, rest := s.entry.carve(s, p, room)
			if rest.from < rest.to {
				q.spans[p][0] = rest
			} else {
				q.spans[p][0] = span{}
				q.spans[p] = q.spans[p][1:]
			}
			if j != nil {
				q.running++
				q.jobs.Go(func() { q.run(j) })
			}
		}
	}
}

func (q *queue) run(j *job) {
	q.start(j)
	if !j.adopted {
		j.cancel(nil)
	}
	j.entry.unuse()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	q.dispatchLocked()
}

// carve takes one job from the beginning of a span; nil when nothing of it
// is to be done. idle is the number of requests that could start now: a
// span is shared among them.
func (e *entry) carve(s span, p priority, idle int) (j *job, rest span) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return nil, span{}
	}
	i := s.from
	for i < s.to && !e.wantedLocked(i) {
		i++
	}
	if i == s.to {
		return nil, span{}
	}
	j = &job{entry: e, part: e.grid.part(i), from: i, to: i, priority: p}
	end := min(s.to, e.grid.first[j.part+1])
	j.stream = e.streamed(j.part)
	most := end - i
	if !j.stream {
		most = e.requestSize(most, j.part, s.request, p, idle)
	}
	for j.to < end && j.to-i < most && (j.stream || e.wantedLocked(j.to)) {
		if e.wantedLocked(j.to) {
			e.startLocked(j.to, j)
		}
		j.to++
	}
	rest = s
	rest.from = j.to
	if j.stream {
		if e.streams[j.part] {
			return nil, rest // it will pass them
		}
		e.streams[j.part] = true
	}
	j.ctx, j.cancel = context.WithCancelCause(e.ctx)
	e.jobs.Add(1)
	return j, rest
}

// wantedLocked says that piece i is neither present nor on its way.
func (e *entry) wantedLocked(i int) bool {
	if e.state.has(i) {
		e.landLocked(i, nil, nil)
		return false
	}
	if data := e.cache.spare.peek(e, i); data != nil {
		e.landLocked(i, nil, data)
		return false
	}
	fl := e.flights[i]
	return fl == nil || !fl.running
}

// startLocked marks piece i as being fetched by j.
func (e *entry) startLocked(i int, j *job) {
	fl := e.flights[i]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		e.flights[i] = fl
	}
	fl.running, fl.job = true, j
	j.alone = j.alone || fl.alone
}

// streamed says that the part can only be had from its start: a large
// frame, or a blob in pieces at a registry that ignores ranges.
func (e *entry) streamed(part int) bool {
	return e.file.Index == nil && !e.grid.whole(part) && (e.file.Parts[part].Encoding != layout.Raw || e.link.IgnoresRanges())
}

// requestSize is how many of n wanted pieces of a part one request takes:
// asked bytes, or an even share for each connection that is idle, but
// enough that the time to the first byte does not dominate.
func (e *entry) requestSize(n, part int, asked int64, p priority, idle int) int {
	size := e.grid.size[part]
	if asked > 0 {
		return int(max(1, asked/size))
	}
	most := int64(requestMost)
	if p >= replayed {
		most = prefetchMost
	}
	least := max(requestLeast, min(e.link.BandwidthDelay(), most))
	share := (int64(n)*size + int64(idle) - 1) / int64(idle)
	return int(max(1, min(max(share, least), most)/size))
}
