package cache

import (
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
)

// priority orders whose pieces go first: what a reader waits for, then what
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
	// that a reader that has to wait for their bytes, or for their connection,
	// does not wait long.
	prefetchMost = 4 << 20
)

// yieldFor is how long prefetching keeps to a few connections after a
// reader had to wait.
const yieldFor = 500 * time.Millisecond

// replayYield is the same for replays, after a reader had to wait for bytes
// that are not among the recorded ones.
const replayYield = 300 * time.Millisecond

// span is a run of pieces [from, to) of one file that somebody wants.
type span struct {
	entry    *entry
	from, to int
	request  int64 // bytes to ask for at a time; 0: as it suits the link
}

// queue decides what is fetched next and bounds how much at a time.
type queue struct {
	limit int
	carve func(s span, p priority, idle int) (j *job, rest span) // takes a job from a span; nil if there is nothing to do
	run   func(j *job)
	hold  func() bool // nothing is to be replayed or prefetched now; dispatch is called when that ends
	jobs  sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	running   int
	waited    time.Time // when a reader last had to wait
	surprised time.Time // when one last had to wait for what no replay brings
	spans     [priorities][]span
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

// surprise notes that a reader waits for what no replay brings.
func (q *queue) surprise() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.surprised = time.Now()
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

// count returns how many jobs run.
func (q *queue) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running
}

// roomLocked returns how many requests of a priority may start now. The lower
// ones leave some to those above them.
func (q *queue) roomLocked(p priority, l *transport.Link) int {
	limit := q.limit
	switch {
	case p == ahead:
		limit = min(limit-1, l.Connections(limit))
	case p >= replayed && q.hold():
		return 0
	case p == replayed && time.Since(q.surprised) < replayYield:
		limit /= 4
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
			j, rest := q.carve(s, p, room)
			if rest.from < rest.to {
				q.spans[p][0] = rest
			} else {
				q.spans[p][0] = span{}
				q.spans[p] = q.spans[p][1:]
			}
			if j != nil {
				q.running++
				q.jobs.Go(func() { q.do(j) })
			}
		}
	}
}

func (q *queue) do(j *job) {
	q.run(j)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	q.dispatchLocked()
}
