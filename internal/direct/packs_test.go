package direct

import (
	"errors"
	"testing"
)

// From a registry that ignores ranges every pack comes once, also the one
// of the very first request, while others ask for the same.
func TestPacksComeOnceWithoutRanges(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		for range 4 {
			s := newStock(t)
			s.packed(5<<20 + 3)
			s.src.noRange = true
			if fails {
				s.src.fail = func(n, _ int64) (f fault) {
					if n == 1 {
						f.err = errors.New("later")
					}
					return f
				}
			}
			if err := s.read(Options{Concurrency: 8, Memory: LeastMemory}); err != nil {
				t.Fatal(err)
			}
			if got := s.src.sent.Load(); got != s.stored() {
				t.Fatalf("%d bytes were sent, not %d", got, s.stored())
			}
		}
	}
}
