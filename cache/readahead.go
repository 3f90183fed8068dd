package cache

import (
	"sync"
	"time"
)

const (
	// trackedReads is how many readers of one file are told apart.
	trackedReads = 8
	// aheadMost is what a steady reader has fetched beyond it: enough for
	// 16 connections of 16 MB/s and half a second.
	aheadMost = 64 << 20
	// steady is how much in a row makes a reader a steady one, who gets
	// growth times as much ahead as has been read. Before that it is a
	// quarter of it: who looks at a megabyte does not pay for many. Where every
	// request takes long, less is enough to say so.
	steady     = 4 << 20
	steadyFar  = 1 << 20
	growth     = 4
	farAway    = 100 * time.Millisecond
	aheadLeast = 512 << 10 // less than this is not worth a request of its own
	refill     = 4 << 20   // a steady reader's window is filled up in steps of this
)

// tracker recognises who reads a file in sequence. The kernel asks in its
// own order and from many processes through one daemon, so it looks at
// offsets and not at handles.
type tracker struct {
	mu    sync.Mutex
	clock uint64
	reads [trackedReads]sequence
}

// sequence is one reader's way through the payload.
type sequence struct {
	next   int64  // where it will read on
	ahead  int64  // up to where was fetched ahead
	read   int64  // how much it has read in a row
	missed bool   // some of that was missing, or fetched ahead for it
	used   uint64 // the tracker's clock at its last read; 0: none
}

// saw notes a read of payload [from, to) of size bytes in all, whether
// something of it was missing, and how long a request takes. It returns
// what to fetch ahead, which may be nothing: nothing for those who read
// what is here.
func (t *tracker) saw(from, to, size int64, missing bool, delay time.Duration) (a, b int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	s := t.find(from, to)
	if s == nil {
		s = t.oldest()
		*s = sequence{next: to, ahead: to, read: to - from, missed: missing, used: t.clock}
		return 0, 0
	}
	s.used = t.clock
	s.missed = s.missed || missing
	if to <= s.next {
		return 0, 0 // one that was overtaken
	}
	s.read += to - s.next
	s.next = to
	if !s.missed {
		return 0, 0
	}
	window := s.window(delay)
	goal := min(s.next+window, size)
	a, b = max(s.ahead, s.next), goal
	// Few large requests rather than many small ones, but soon enough that
	// the link never idles.
	if b-a < max(min(window/2, refill), aheadLeast) && goal < size || a >= b {
		return 0, 0
	}
	s.ahead = goal
	return a, b
}

// window is how far ahead of the reader to fetch.
func (s *sequence) window(delay time.Duration) int64 {
	enough := int64(steady)
	if delay >= farAway {
		enough = steadyFar
	}
	if s.read < enough {
		return s.read / 4
	}
	if delay >= farAway {
		return aheadMost
	}
	return min(s.read*growth, aheadMost)
}

// find returns the sequence that a read at from continues, the nearest if
// several. The kernel may have swapped or skipped a read or two of the
// same size.
func (t *tracker) find(from, to int64) (best *sequence) {
	slack := 2 * (to - from)
	for i := range t.reads {
		s := &t.reads[i]
		if s.used == 0 || from < s.next-slack || from > s.next+slack {
			continue
		}
		if best == nil || abs(from-s.next) < abs(from-best.next) {
			best = s
		}
	}
	return best
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
