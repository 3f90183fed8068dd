package transport

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBusyMachine takes nothing for standing still that may only wait for a
// processor.
func TestBusyMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		busy := false
		s := newStage(16*unit, func(n int, _ int64) fault { return fault{delay: []time.Duration{10 * ms, 150 * ms}[n%2]} })
		l := NewLink(s, Options{})
		l.busy.read = func() (time.Duration, bool) {
			if busy {
				return time.Since(began), true
			}
			return 0, true
		}
		for _, busy = range []bool{true, false} {
			l.delay, l.budget.tokens = smoothed{known: true}, tokensFirst
			before := l.Stats().Slow
			for off := range int64(8) {
				if err := s.fetch(t.Context(), t, l, off*unit, unit); err != nil {
					t.Fatal(err)
				}
				l.delay = smoothed{known: true}
			}
			if slow := l.Stats().Slow - before; (slow == 0) != busy {
				t.Errorf("busy %v: %d doubles", busy, slow)
			}
		}
		l.Close()
	})
}

func TestParsePressure(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"some avg10=94.00 avg60=96.16 avg300=94.22 total=3880550705\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n": 3880550705 * time.Microsecond,
		"":                           -1,
		"some avg10=94.00 total=x\n": -1,
	} {
		if got, ok := parsePressure(text); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
}
