package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzState opens any bytes as a state file. Who can only read it sees in it
// what others do, and changes nothing.
func FuzzState(f *testing.F) {
	key := strings.Repeat("ab", 32)
	good := make([]byte, StateHeader+8*5)
	copy(good, header(key, 5))
	f.Add(good, 5)
	f.Add([]byte{}, 0)
	f.Add(good[:100], 5)
	f.Fuzz(func(t *testing.T, b []byte, pieces int) {
		if pieces < 0 || pieces > 1000 || len(b) > 1<<20 {
			return
		}
		name := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		seen := seenReadOnly(t, name, key, pieces)
		if after, err := os.ReadFile(name); err != nil || !bytes.Equal(after, b) {
			t.Fatalf("it was changed: %v", err)
		}
		s, err := mapLocked(file, key, pieces, false, Lock)
		if err != nil {
			if !errors.Is(err, ErrDamaged) || seen != "" {
				t.Fatal(seen, err)
			}
			return
		}
		defer s.unmap()
		if seen != "" && seen != stateText(s, pieces) {
			t.Fatalf("read-only it is\n%s\nand else\n%s", seen, stateText(s, pieces))
		}
		for i := range pieces {
			if err := s.reserve(i); err != nil {
				t.Fatal(err)
			}
			s.set(i, uint64(i), i%2 == 0)
			if !s.Has(i) || s.Verified(i) != (i%2 == 0) {
				t.Fatalf("piece %d is not as it was set", i)
			}
		}
	})
}

// seenReadOnly is what a state file says to who can only read it; "" where
// it is damaged.
func seenReadOnly(t *testing.T, name, key string, pieces int) string {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := mapLocked(f, key, pieces, true, Lock)
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		return ""
	}
	defer s.unmap()
	text := stateText(s, pieces)
	s.Unseal()
	for i := range pieces {
		s.Settle(i, 0)
		s.SetVerified(i, uint64(s.Word(i)))
		s.Clear(i)
	}
	if s.Sealed() {
		t.Fatal("a piece was wrong, and the file is sealed")
	}
	return text
}

func stateText(s *State, pieces int) string {
	text := fmt.Sprintln(s.Sealed(), s.Unsafe())
	for i := range pieces {
		text += fmt.Sprintln(i, s.Has(i), s.Suspect(i), s.Verified(i))
	}
	return text
}
