package transport

import (
	"errors"
	"testing"
	"time"
)

var errCut = errors.New("connection reset")

// TestPauses has a source fail all the time: pauses between tries grow, are
// bounded, and are not all the same.
func TestPauses(t *testing.T) {
	var last time.Duration
	seen := map[time.Duration]bool{}
	for range 30 {
		l := NewLink(nil, nil)
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
