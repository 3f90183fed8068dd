package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// zeroStates opens one state n times, as so many processes would.
func zeroStates(t *testing.T, pieces, n int) []*State {
	t.Helper()
	name := filepath.Join(t.TempDir(), "state")
	key := string(bytes.Repeat([]byte("0"), 64))
	var all []*State
	for range n {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		s, err := mapLocked(f, key, pieces, false, Lock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.unmap(); f.Close() })
		all = append(all, s)
	}
	return all
}

// TestZerosOverNoWord has many processes reserve the same stretches by zeros,
// each to store words there at once: none is lost.
func TestZerosOverNoWord(t *testing.T) {
	t.Parallel()
	const pieces = 3*wordsAtOnce + 77
	for range 20 {
		var g sync.WaitGroup
		states := zeroStates(t, pieces, 8)
		for p, s := range states {
			g.Go(func() {
				for i := p; i < pieces; i += 997 {
					n := i / wordsAtOnce
					size := min(wordsAtOnce, pieces-n*wordsAtOnce)
					if err := s.reserveZeros(n, StateHeader+8*int64(n*wordsAtOnce), 8*int64(size)); err != nil {
						t.Error(err)
					}
					s.set(i, uint64(i), true)
				}
			})
		}
		g.Wait()
		for p := range states {
			for i := p; i < pieces; i += 997 {
				if !states[0].Verified(i) || states[0].Word(i)&WordSum != Word(i) {
					t.Fatalf("word %d is %x", i, states[0].Word(i))
				}
			}
		}
	}
}

// TestZerosKeepWords has a state that was written where there is fallocate,
// and then copied: its words stay.
func TestZerosKeepWords(t *testing.T) {
	t.Parallel()
	s := zeroStates(t, 2*wordsAtOnce, 1)[0]
	for _, i := range []int{0, 63, 64, 5000, wordsAtOnce - 1} {
		s.set(i, uint64(i), false)
	}
	if err := s.reserveZeros(0, StateHeader, 8*wordsAtOnce); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 63, 64, 5000, wordsAtOnce - 1} {
		if !s.Has(i) || s.Word(i)&WordSum != Word(i) {
			t.Errorf("word %d is %x", i, s.Word(i))
		}
	}
	if !s.hasRoom(0) || s.hasRoom(1) {
		t.Errorf("room: %v, %v", s.hasRoom(0), s.hasRoom(1))
	}
}

// TestZerosOfStoppedPeer has another process stopped while it writes zeros:
// one piece is waited for, the others are not.
func TestZerosOfStoppedPeer(t *testing.T) {
	t.Parallel()
	all := zeroStates(t, 2*wordsAtOnce, 2)
	if ok, err := TryLock(all[0].file, unix.F_WRLCK, lockRoom, 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := all[1].reserveZeros(0, StateHeader, 8*wordsAtOnce); !errors.Is(err, ErrHeld) {
		t.Errorf("the first: %v", err)
	}
	held := all[1].zerosHeld
	for range 1000 {
		if err := all[1].reserveZeros(1, StateHeader+8*wordsAtOnce, 8*wordsAtOnce); !errors.Is(err, ErrHeld) || all[1].zerosHeld != held {
			t.Fatalf("the next: %v", err)
		}
	}
}
