package disk

import (
	"sync/atomic"
	"testing"
)

// set marks piece i present whatever its word is.
func (s *State) set(i int, sum uint64, verified bool) {
	w := WordPresent | Word(sum)&WordSum
	if verified {
		w |= WordVerified
	}
	atomic.StoreUint64(&s.words[i], uint64(w))
}

// TestTurns changes a word back and forth: who looked at it before does not
// take it for what it was.
func TestTurns(t *testing.T) {
	t.Parallel()
	s := zeroStates(t, 9, 1)[0]
	if err := s.reserve(1); err != nil {
		t.Fatal(err)
	}
	for range 2 * Turns {
		old := s.Word(1)
		if !s.put(1, old, 7, true) || !s.Verified(1) || s.Word(1)&WordSum != 7 {
			t.Fatalf("the word is %#x", s.Word(1))
		}
		if s.put(1, old, 8, false) {
			t.Fatal("a piece was put where another had been put meanwhile")
		}
		if !s.Clear(1) || s.Has(1) || s.Word(1)&WordTurn == old&WordTurn {
			t.Fatalf("the word is %#x, and was %#x", s.Word(1), old)
		}
		if s.put(1, old, 7, true) {
			t.Fatal("a piece was put where one had been taken back meanwhile")
		}
	}
	before := s.Word(1)
	if s.Clear(1) || s.Word(1) == before {
		t.Error("who is just about to put it there does not learn of that")
	}
}
