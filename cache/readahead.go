package cache

import (
	"sync"
	"time"
)

const (
	// trackedReads is how many readers of one file are told apart.
	trackedReads = 8
	// aheadMost is what a steady reader has fetched beyond it: enough for
	// 16 connections of 16 MB/s and half a second. Who has read more
	// than that gets as much again, up to aheadLong: so the link does not
	// idle while such a reader crosses holes.
	aheadMost = 64 << 20
	aheadLong = 256 << 20
	// steady is how much in a row makes a reader a steady one, who gets
	// growth times as much ahead as has been read. Before that it is a third of
	// it: who looks at a megabyte does not pay for many. Where every request
	// takes long, and from the file's start, where those begin who read all of
	// it, less is enough to say so.
	steady     = 4 << 20
	steadySoon = 1 << 20
	growth     = 4
	farAway    = 100 * time.Millisecond
	aheadLeast = 512 << 10 // less than this is not worth a request of its own
	// shares is how many requests make up a window: enough for all
	// connections, in the order in which their bytes will be read. A window
	// is filled up by a request at a time.
	shares = 8

	// strideSteps is how many equal steps in a row make a stride, and
	// strideAhead how many more of them are fetched at most.
	strideSteps = 3
	strideAhead = 32
)

// tracker recognises who reads a file in an order. The kernel asks in its
// own order and from many processes through one daemon, so it looks at
// offsets and not at handles.
type tracker struct {
	mu    sync.Mutex
	clock uint64
	last  int64 // where the last read began
	reads [trackedReads]sequence
}

// sequence is one reader's way through the file.
type sequence struct {
	off    int64  // in the file, where a sequential reader reads on
	next   int64  // the same in the payload
	ahead  int64  // up to where of the payload was fetched ahead
	read   int64  // how much of the payload it has read in a row
	missed bool   // some of that was missing, or fetched ahead for it
	first  bool   // it began where the file begins
	used   uint64 // the tracker's clock at its last read; 0: none

	start int64 // in the file, where its last read began
	step  int64 // from the read before to that one
	steps int   // how often in a row it was the same
	given int   // how many steps from the last read on are fetched ahead
}

// look is a read as the tracker sees it: a stretch of the file, and the
// payload in it.
type look struct {
	off, n   int64
	from, to int64
	missing  bool  // something of it was
	most     int64 // bytes to fetch ahead at most; 0: as it suits; nothingAhead
}

// nothingAhead is the most of who knows what it will want next.
const nothingAhead = -1

// reach is what to fetch ahead: payload [from, to), or, where count is not
// 0, that many stretches of the file of n bytes each, step bytes apart.
type reach struct {
	from, to     int64
	request      int64 // how many bytes to ask for at a time
	off, n, step int64
	count        int
}

// saw notes a read of a file with size bytes of payload, and how long a
// request takes. It returns what to fetch ahead, which may be nothing:
// nothing for those who read what is here.
func (t *tracker) saw(l look, size int64, delay time.Duration) reach {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	before := t.last
	t.last = l.off
	if s := t.follows(l); s != nil {
		s.used = t.clock
		return s.goOn(l, size, delay)
	}
	if s := t.strides(l); s != nil {
		s.used = t.clock
		return s.stride(l)
	}
	s := t.oldest()
	*s = sequence{
		off: l.off + l.n, next: l.to, ahead: l.to, read: l.to - l.from, missed: l.missing, first: l.from == 0,
		used: t.clock, start: l.off, step: l.off - before, steps: 1,
	}
	return reach{}
}

// follows returns the sequence that a read continues, the nearest if
// several. The kernel may have swapped or skipped a read or two of the
// same size; in the payload, holes between them do not count.
func (t *tracker) follows(l look) (best *sequence) {
	var nearest int64
	for i := range t.reads {
		s := &t.reads[i]
		if s.used == 0 {
			continue
		}
		far := abs(l.off - s.off)
		if far > 2*l.n {
			if far = abs(l.from - s.next); far > 2*(l.to-l.from) {
				continue
			}
		}
		// A read that ends where the last one began goes backwards.
		if l.off+l.n <= s.start && s.step == -l.n && s.read <= 2*l.n {
			continue
		}
		if best == nil || far < nearest {
			best, nearest = s, far
		}
	}
	return best
}

// strides returns the sequence whose next step a read is.
func (t *tracker) strides(l look) *sequence {
	for i := range t.reads {
		if s := &t.reads[i]; s.used > 0 && s.step != 0 && l.off == s.start+s.step {
			return s
		}
	}
	return nil
}

// goOn notes a sequential read.
func (s *sequence) goOn(l look, size int64, delay time.Duration) reach {
	s.missed = s.missed || l.missing
	s.off = max(s.off, l.off+l.n)
	s.step, s.start = l.off-s.start, l.off
	if l.to <= s.next {
		return reach{} // one that was overtaken
	}
	s.read += l.to - s.next
	s.next = l.to
	if !s.missed {
		return reach{}
	}
	window := s.window(delay)
	if l.most > 0 {
		window = min(window, l.most)
	}
	goal := min(s.next+window, size)
	from := max(s.ahead, s.next)
	// Large requests, of which each costs a registry some milliseconds, but
	// so many at a time that the link never idles.
	request := max(window/shares, min(window/4, requestLeast), aheadLeast)
	if goal-from < request && goal < size || from >= goal {
		return reach{}
	}
	s.ahead = goal
	return reach{from: from, to: goal, request: request}
}

// window is how far ahead of the reader to fetch.
func (s *sequence) window(delay time.Duration) int64 {
	enough := int64(steady)
	if delay >= farAway || s.first {
		enough = steadySoon
	}
	switch {
	case s.read < enough:
		return s.read / 3
	case delay >= farAway || s.read >= aheadMost/growth:
		return min(max(aheadMost, s.read), aheadLong)
	}
	return s.read * growth
}

// stride notes a read at an equal distance from the one before, forwards
// or backwards.
func (s *sequence) stride(l look) reach {
	s.missed = s.missed || l.missing
	s.start, s.off, s.next = l.off, l.off+l.n, l.to
	s.ahead, s.read = s.next, l.to-l.from
	s.steps++
	s.given = max(0, s.given-1)
	want := min(s.steps, strideAhead)
	if !s.missed || s.steps < strideSteps || s.given > want/2 {
		return reach{}
	}
	r := reach{off: l.off + int64(s.given+1)*s.step, n: l.n, step: s.step, count: want - s.given}
	s.given = want
	return r
}

func abs(n int64) int64 { return max(n, -n) }

func (t *tracker) oldest() *sequence {
	s := &t.reads[0]
	for i := range t.reads {
		if t.reads[i].used < s.used {
			s = &t.reads[i]
		}
	}
	return s
}
