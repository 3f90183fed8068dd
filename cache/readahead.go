package cache

import "sync"

const (
	// trackedReads is how many readers of one file are told apart.
	trackedReads = 8
	// aheadFirst is what is fetched beyond the second of two reads in a
	// row, aheadMost what a steady reader has fetched beyond it: enough for
	// 16 connections of 16 MB/s and half a second.
	aheadFirst  = 4 << 20
	aheadMost   = 64 << 20
	aheadGrowth = 4
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
	window int64  // how far ahead to be next
	used   uint64 // the tracker's clock at its last read; 0: none
}

// saw notes a read of payload [from, to) of size bytes in all and returns
// what to fetch ahead, which may be nothing.
func (t *tracker) saw(from, to, size int64) (a, b int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clock++
	s := t.find(from, to)
	if s == nil {
		s = t.oldest()
		*s = sequence{next: to, ahead: to, used: t.clock}
		return 0, 0
	}
	s.used = t.clock
	if to <= s.next {
		return 0, 0 // one that was overtaken
	}
	s.next = to
	if s.window == 0 {
		s.window = aheadFirst
	}
	goal := min(s.next+s.window, size)
	a, b = max(s.ahead, s.next), goal
	// Few large requests rather than many small ones: only when half of
	// the window has been read.
	if b-a < s.window/2 && goal < size || a >= b {
		return 0, 0
	}
	s.ahead = goal
	s.window = min(s.window*aheadGrowth, aheadMost)
	return a, b
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
