package transport

import (
	"testing"
	"time"
)

// TestPauses has a source fail all the time: pauses between tries grow, are
// bounded, and are not all the same.
func TestPauses(t *testing.T) {
	var last time.Duration
	seen := map[time.Duration]bool{}
	for range 30 {
		l := NewLink(nil, Options{})
		for i := range 40 {
			d := l.Pause(errCut)
			l.retry = time.Time{} // it is over
			if most := min(backoffFirst<<min(i, 20), backoffMost); d < most/2 || d > most {
				t.Fatalf("try %d: a pause of %v, want about %v", i, d, most)
			}
			last = d
		}
		seen[last] = true
	}
	if last < backoffMost/2 || len(seen) < 10 {
		t.Errorf("the last pause is %v, of %d different ones", last, len(seen))
	}
}

// TestBest learns from the shortest delay and the fastest stretch, and
// nothing from one that is too short to tell.
func TestBest(t *testing.T) {
	l := NewLink(nil, Options{})
	for _, d := range []time.Duration{2, 1, 5} {
		l.answered(&request{began: l.now() - d*time.Second})
	}
	l.movedBytes(256<<10-1, time.Microsecond)
	if l.Best().Speed != 0 {
		t.Error("a short read counts")
	}
	l.movedBytes(4<<20, time.Millisecond)
	l.movedBytes(4<<20, time.Second)
	if b := l.Best(); b.Answers != 3 || b.Delay.Round(time.Second) != time.Second || b.Speed != 4000<<20 {
		t.Errorf("%+v", b)
	}
}
