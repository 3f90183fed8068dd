// Package readahead recognises readers that read a file in order, and decides
// what is worth fetching before they ask for it. It fetches nothing.
package readahead

import (
	"sync"
	"time"
)

const (
	// trackedReads is how many readers of one file are distinguished.
	trackedReads = 8
	// aheadMost is what a steady reader has fetched beyond it: enough for
	// 16 connections of 16 MB/s and half a second. A reader that has read more
	// than that gets as much again, up to aheadLong: so the link does not
	// idle while such a reader crosses holes.
	aheadMost = 64 << 20
	aheadLong = 256 << 20
	// steady is the length of a run of reads after which a reader counts as
	// steady: then growth times the run is fetched ahead, before that a third
	// of it, so that a reader of one megabyte does not cost many. If every
	// request takes long, and at the beginning of the file, where readers of
	// the whole file begin, a shorter run is enough.
	steady       = 4 << 20
	steadySoon   = 1 << 20
	growth       = 4
	farAway      = 100 * time.Millisecond
	aheadLeast   = 512 << 10 // less than this is not worth a request of its own
	requestLeast = 1 << 20   // a request of this is worth its while on most links
	// shares is how many requests make up a window: enough for all
	// connections, in the order in which their bytes will be read. A window
	// is filled up by a request at a time.
	shares = 8

	// strideSteps is how many equal steps in a row make a stride, and
	// strideAhead how many more of them are fetched at most.
	strideSteps = 3
	strideAhead = 32
)

// Tracker recognises the readers of one file that read in order. The kernel
// sends requests in its own order and from many processes to one worker, so
// Tracker goes by offsets and not by handles.
type Tracker struct {
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
	used   uint64 // the Tracker's clock at its last read; 0: none

	start int64 // in the file, where its last read began
	step  int64 // from the read before to that one
	steps int   // how often in a row it was the same
	given int   // how many steps from the last read on are fetched ahead
}

// Access is a read: a stretch of the file, and the payload in it.
type Access struct {
	Off, N   int64
	From, To int64
	Missing  bool  // a piece of the stretch is missing
	Most     int64 // bytes to fetch ahead at most; 0: as it suits; NothingAhead
}

// NothingAhead is the Most of a reader that knows what it will want next.
const NothingAhead = -1

// Reach is what to fetch ahead: payload [From, To), or, if Count is not 0,
// that many stretches of the file of N bytes each, Step bytes apart.
type Reach struct {
	From, To     int64
	Request      int64 // how many bytes to ask for at a time
	Off, N, Step int64
	Count        int
}

// Saw notes a read of a file with size bytes of payload, and how long a
// request takes. It returns the stretch to fetch ahead, which is empty if
// the reader's own bytes are present.
func (t *Tracker) Saw(l Access, size int64, delay time.Duration) Reach {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	before := t.last
	t.last = l.Off
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
		off: l.Off + l.N, next: l.To, ahead: l.To, read: l.To - l.From, missed: l.Missing, first: l.From == 0,
		used: t.clock, start: l.Off, step: l.Off - before, steps: 1,
	}
	return Reach{}
}

// follows returns the sequence that a read continues, the nearest if
// several. The kernel may have swapped or skipped a read or two of the
// same size; in the payload, holes between them do not count.
func (t *Tracker) follows(l Access) (best *sequence) {
	var nearest int64
	for i := range t.reads {
		s := &t.reads[i]
		if s.used == 0 {
			continue
		}
		far := abs(l.Off - s.off)
		if far > 2*l.N {
			if far = abs(l.From - s.next); far > 2*(l.To-l.From) {
				continue
			}
		}
		// A read that ends where the last one began goes backwards.
		if l.Off+l.N <= s.start && s.step == -l.N && s.read <= 2*l.N {
			continue
		}
		if best == nil || far < nearest {
			best, nearest = s, far
		}
	}
	return best
}

// strides returns the sequence whose next step a read is.
func (t *Tracker) strides(l Access) *sequence {
	for i := range t.reads {
		if s := &t.reads[i]; s.used > 0 && s.step != 0 && l.Off == s.start+s.step {
			return s
		}
	}
	return nil
}

// goOn notes a sequential read.
func (s *sequence) goOn(l Access, size int64, delay time.Duration) Reach {
	s.missed = s.missed || l.Missing
	s.off = max(s.off, l.Off+l.N)
	s.step, s.start = l.Off-s.start, l.Off
	if l.To <= s.next {
		return Reach{} // one that was overtaken
	}
	s.read += l.To - s.next
	s.next = l.To
	if !s.missed {
		return Reach{}
	}
	window := s.window(delay)
	if l.Most > 0 {
		window = min(window, l.Most)
	}
	goal := min(s.next+window, size)
	from := max(s.ahead, s.next)
	// Large requests, of which each costs a registry some milliseconds, but
	// so many at a time that the link never idles.
	request := max(window/shares, min(window/4, requestLeast), aheadLeast)
	if goal-from < request && goal < size || from >= goal {
		return Reach{}
	}
	s.ahead = goal
	return Reach{From: from, To: goal, Request: request}
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
func (s *sequence) stride(l Access) Reach {
	s.missed = s.missed || l.Missing
	s.start, s.off, s.next = l.Off, l.Off+l.N, l.To
	s.ahead, s.read = s.next, l.To-l.From
	s.steps++
	s.given = max(0, s.given-1)
	want := min(s.steps, strideAhead)
	if !s.missed || s.steps < strideSteps || s.given > want/2 {
		return Reach{}
	}
	r := Reach{Off: l.Off + int64(s.given+1)*s.step, N: l.N, Step: s.step, Count: want - s.given}
	s.given = want
	return r
}

func abs(n int64) int64 { return max(n, -n) }

func (t *Tracker) oldest() *sequence {
	s := &t.reads[0]
	for i := range t.reads {
		if t.reads[i].used < s.used {
			s = &t.reads[i]
		}
	}
	return s
}
