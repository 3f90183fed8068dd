package cache

import (
	"sync"
)

// priority says whose pieces go first: what a reader waits for, then what
// it will want next, then what nobody has asked for yet.
type priority int

const (
	demanded priority = iota
	ahead
	prefetched
	priorities
)

// reserved is how many of the requests in flight a priority leaves to
// those above it.
var reserved = [priorities]int{demanded: 0, ahead: 1, prefetched: 3}

// Bounds of one request for raw pieces.
const (
	requestLeast = 1 << 20
	requestMost  = 16 << 20
)

// span is a run of pieces [from, to) of one file that somebody wants.
type span struct {
	entry    *entry
	from, to int
}

// job is one request: pieces [from, to) of one part. Their flights are
// running, and the entry is in use.
type job struct {
	entry    *entry
	part     int
	from, to int
	stream   bool // the part is fetched from its start to its end
	alone    bool // do not ask other processes
}

// queue decides what is fetched next and bounds how much at a time.
type queue struct {
	limit int
	start func(job)
	jobs  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	running int
	spans   [priorities][]span
}

func newQueue(limit int, start func(job)) *queue {
	return &queue{limit: limit, start: start}
}

// push queues spans, after those of the same priority.
func (q *queue) push(p priority, spans ...span) {
	if len(spans) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.spans[p] = append(q.spans[p], spans...)
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

func (q *queue) dispatchLocked() {
	for p := demanded; p < priorities && !q.closed; p++ {
		for len(q.spans[p]) > 0 && q.running < max(1, q.limit-reserved[p]) {
			s := q.spans[p][0]
			j, rest, ok := s.entry.carve(s, max(1, q.limit-q.running))
			if rest.from < rest.to {
				q.spans[p][0] = rest
			} else {
				q.spans[p][0] = span{}
				q.spans[p] = q.spans[p][1:]
			}
			if ok {
				q.running++
				q.jobs.Go(func() { q.run(j) })
			}
		}
	}
}

func (q *queue) run(j job) {
	q.start(j)
	j.entry.unuse()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	q.dispatchLocked()
}

// carve takes one job from the beginning of a span. idle is the number of
// requests that could start now: a span is shared among them.
func (e *entry) carve(s span, idle int) (j job, rest span, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return job{}, span{}, false
	}
	i := s.from
	for i < s.to && !e.wantedLocked(i) {
		i++
	}
	if i == s.to {
		return job{}, span{}, false
	}
	j = job{entry: e, part: e.grid.part(i), from: i, to: i}
	end := min(s.to, e.grid.first[j.part+1])
	if e.streamed(j.part) {
		j.to = end
		for k := i; k < end; k++ {
			if e.wantedLocked(k) {
				e.startLocked(k, &j)
			}
		}
		if e.streams[j.part] {
			return job{}, span{e, end, s.to}, false // it will pass them
		}
		e.streams[j.part], j.stream = true, true
	} else {
		most := e.requestSize(end-i, j.part, idle)
		for j.to < end && j.to-i < most && e.wantedLocked(j.to) {
			e.startLocked(j.to, &j)
			j.to++
		}
	}
	e.jobs.Add(1)
	return j, span{e, j.to, s.to}, true
}

// wantedLocked says that piece i is neither present nor on its way.
func (e *entry) wantedLocked(i int) bool {
	if e.state.has(i) {
		e.landLocked(i, nil, nil)
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
	fl.running = true
	j.alone = j.alone || fl.alone
}

// streamed says that the part can only be had from its start: a large
// frame, or a blob in pieces at a registry that ignores ranges.
func (e *entry) streamed(part int) bool {
	return !e.grid.whole(part) && (e.file.Parts[part].Encoding != 0 || e.link.ignoresRanges())
}

// requestSize is how many of n wanted pieces of a part one request takes:
// an even share for each connection that is idle, but enough that the
// time to the first byte does not dominate.
func (e *entry) requestSize(n, part, idle int) int {
	size := e.grid.size[part]
	least := max(requestLeast, min(e.link.bandwidthDelay(), requestMost))
	share := (int64(n)*size + int64(idle) - 1) / int64(idle)
	return int(max(1, min(max(share, least), requestMost)/size))
}
