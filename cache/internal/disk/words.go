package disk

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Word is what the state knows of a piece: bit 63 present, bit 62 verified,
// bit 61 suspect, bits 56 to 60 the piece's turn, bits 0 to 55 the low bits of
// the xxh64 of its payload. One atomic change of it sets presence and checksum
// together.
//
// A present piece that turns out to be wrong has been read: the kernel keeps
// pages of it, for mounts of this process and of others. So its word does not
// go back to zero. It keeps a number, its turn, that counts how often the
// piece was taken back, and a process that shows the file compares the turns
// with those that it has seen (changes.go). Presence, checksum and turn change with
// one compare-and-swap, so a process that dies in between leaves nothing half
// done. Counters in the header show when a comparison is worth its while.
type Word uint64

// Bits of a Word.
const (
	WordPresent  Word = 1 << 63
	WordVerified Word = 1 << 62 // checked against a digest of the artifact
	WordSuspect  Word = 1 << 61 // written before the last boot, not looked at since
	WordTurn     Word = 31 << wordTurnOne
	WordSum      Word = 1<<56 - 1

	wordTurnOne = 56

	// Turns is the number of turns; they are counted modulo that.
	Turns = 32
)

// Counters in the header.
const (
	offBegun = 96  // how often pieces were about to be taken back
	offEnded = 104 // how often that was done
	offWrong = 112 // pieces that were taken back because they were wrong
)

// Present reports whether the piece was written, even if it is suspect.
func (w Word) Present() bool { return w&WordPresent != 0 }

// Readable reports whether the piece may be read from the data file.
func (w Word) Readable() bool { return w&(WordPresent|WordSuspect) == WordPresent }

// Suspect reports whether the piece was written before the last boot and not
// looked at since.
func (w Word) Suspect() bool { return w&(WordPresent|WordSuspect) == WordPresent|WordSuspect }

// Verified reports whether the piece may be read and a digest of the artifact
// vouches for it.
func (w Word) Verified() bool {
	return w&(WordPresent|WordSuspect|WordVerified) == WordPresent|WordVerified
}

// HasSum reports whether sum is the checksum in the word.
func (w Word) HasSum(sum uint64) bool { return (w^Word(sum))&WordSum == 0 }

// Word returns the word of piece i.
func (s *State) Word(i int) Word { return Word(atomic.LoadUint64(&s.words[i])) }

func (s *State) swap(i int, old, next Word) bool {
	return atomic.CompareAndSwapUint64(&s.words[i], uint64(old), uint64(next))
}

// Each calls f for every word that may be other than 0: words on pages of the
// file that were never stored to are left out.
func (s *State) Each(f func(i int)) {
	fd, end := int(s.file.Fd()), int64(len(s.mem))
	for at := int64(StateHeader); at < end; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return
		}
		hole := end
		if err == nil {
			hole, err = unix.Seek(fd, data, unix.SEEK_HOLE)
		}
		if err != nil {
			data, hole = at, end // a file system that does not tell
		}
		for i := (max(data, at) - StateHeader) / 8; i < (min(hole, end)-StateHeader)/8; i++ {
			f(int(i))
		}
		at = hole
	}
}

// Has reports whether piece i may be read from the data file.
func (s *State) Has(i int) bool { return s.Word(i).Readable() }

// HasSum reports whether piece i may be read and has that checksum.
func (s *State) HasSum(i int, sum uint64) bool {
	w := s.Word(i)
	return w.Readable() && w.HasSum(sum)
}

// HasAll reports whether all of pieces [i, j) may be.
func (s *State) HasAll(i, j int) bool {
	for ; i < j; i++ {
		if !s.Has(i) {
			return false
		}
	}
	return true
}

// Suspect reports whether piece i is to be rechecked before it is read.
func (s *State) Suspect(i int) bool { return s.Word(i).Suspect() }

// Verified reports whether piece i is present and verified.
func (s *State) Verified(i int) bool { return s.Word(i).Verified() }

// AllVerified reports whether all of pieces [i, j) are.
func (s *State) AllVerified(i, j int) bool {
	for ; i < j; i++ {
		if !s.Verified(i) {
			return false
		}
	}
	return true
}

// Count returns the number of pieces that may be read.
func (s *State) Count() (n int) {
	s.Each(func(i int) {
		if s.Has(i) {
			n++
		}
	})
	return n
}

// put marks piece i present if its word is still old. Its data must have been
// written, and room for the word have been reserved. It reports false if
// somebody else has put the piece there or taken it back since old was read.
func (s *State) put(i int, old Word, sum uint64, verified bool) bool {
	w := WordPresent | old&WordTurn | Word(sum)&WordSum
	if verified {
		w |= WordVerified
	}
	return s.swap(i, old, w)
}

// Hand records in the word the checksum of a missing piece that readers got
// from memory. If other bytes come later, the readers' copies must be dropped.
// Without room on disk for the word, nothing is recorded.
func (s *State) Hand(i int, sum uint64) {
	if !s.readOnly && s.reserve(i) != nil {
		return
	}
	if w := s.Word(i); !w.Present() {
		s.swap(i, w, w&WordTurn|Word(sum)&WordSum)
	}
}

// OtherHanded reports whether a piece other than one with that checksum was
// handed to readers and is not on disk. word is the piece's.
func (s *State) OtherHanded(i int, sum uint64) (word Word, other bool) {
	word = s.Word(i)
	return word, word&(WordPresent|WordSuspect) == 0 && word&WordSum != 0 && !word.HasSum(sum)
}

// SetVerified marks piece i as verified if it is present with that checksum.
func (s *State) SetVerified(i int, sum uint64) {
	if w := s.Word(i); w.Readable() && w.HasSum(sum) {
		s.swap(i, w, w|WordVerified)
	}
}

// withdraw makes a present piece missing if its word is still old.
func (s *State) withdraw(i int, old Word) bool {
	return s.swap(i, old, (old+1<<wordTurnOne)&WordTurn)
}

// Clear makes piece i missing, and reports whether it was present. If it was
// not, its turn moves on all the same, for a process that is about to put it
// there; but not if the word has no blocks on disk, and a store could fail.
func (s *State) Clear(i int) bool {
	for {
		w := s.Word(i)
		if !w.Present() && !s.reserved(i) {
			return false
		}
		if s.withdraw(i, w) {
			return w.Present()
		}
	}
}

// Settle ends the suspicion against piece i, whose data has the checksum sum.
// It reports whether the word says the same; if not, the piece is missing from
// now on.
func (s *State) Settle(i int, sum uint64) bool {
	for {
		w := s.Word(i)
		if w&WordSuspect == 0 {
			return w.Present()
		}
		next := w &^ WordSuspect
		if !w.HasSum(sum) {
			next = w & WordTurn
		}
		if s.swap(i, w, next) {
			return next.Present()
		}
	}
}

func (s *State) counter(off int) *uint64 { return (*uint64)(unsafe.Pointer(&s.mem[off])) }

// taking announces that pieces are taken back. done takes how many of them
// were wrong and returns by how much that moves the counter. A process that
// dies in between leaves the counters begun and ended unequal; then turns are
// compared from time to time. In a file that can only be read nothing is counted, and moved is 0.
func (s *State) taking() (moved uint64, done func(wrong int) uint64) {
	if s.readOnly {
		return 0, func(int) uint64 { return 0 }
	}
	atomic.AddUint64(s.counter(offBegun), 1)
	return 1, func(wrong int) uint64 {
		atomic.AddUint64(s.counter(offWrong), uint64(wrong))
		atomic.AddUint64(s.counter(offEnded), 1)
		return uint64(wrong)
	}
}

// taken returns how often pieces were about to be taken back, how often that
// was done, and how many of them were wrong, by whichever process.
func (s *State) taken() (begun, ended, wrong uint64) {
	ended = atomic.LoadUint64(s.counter(offEnded)) // before begun: equal means that all is done
	return atomic.LoadUint64(s.counter(offBegun)), ended, atomic.LoadUint64(s.counter(offWrong))
}

// shared returns the words as all processes see them.
func (s *State) shared() []uint64 { return wordsOf(s.mem) }

// wordsOf returns the words in a mapped state file.
func wordsOf(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)[StateHeader/8:]
}
