package cache

import (
	"sync/atomic"
	"unsafe"
)

// A present piece that turns out to be wrong has been read: the kernel keeps
// pages of it, for mounts of this process and of others. So its word does not
// go back to zero. It keeps a number, its turn, that counts how often the
// piece was taken back, and whoever shows the file compares the turns with
// those that it has seen (changes.go). Presence, checksum and turn change with
// one compare-and-swap, so a process that dies in between leaves nothing half
// done. Counters in the header tell when a comparison is worth its while.
const (
	wordTurn    = 31 << wordTurnOne // modulo 32
	wordTurnOne = 56

	offBegun = 96  // how often pieces were about to be taken back
	offEnded = 104 // how often that was done
	offWrong = 112 // pieces that were taken back because they were wrong
)

// put marks piece i present if its word is still old. Its data must have been
// written, and room for the word have been reserved. Where put reports false,
// somebody else has put the piece there or taken it back since old was read.
func (s *state) put(i int, old, sum uint64, verified bool) bool {
	w := wordPresent | old&wordTurn | sum&wordSum
	if verified {
		w |= wordVerified
	}
	return atomic.CompareAndSwapUint64(&s.words[i], old, w)
}

// hand notes the checksum of a piece that is not on disk and was handed over
// all the same: the word of a missing piece has room for it.
func (s *state) hand(i int, sum uint64) {
	if w := s.word(i); w&wordPresent == 0 {
		atomic.CompareAndSwapUint64(&s.words[i], w, w&wordTurn|sum&wordSum)
	}
}

// otherHanded reports whether a piece other than one with that checksum was
// handed over and is not on disk. word is the piece's.
func (s *state) otherHanded(i int, sum uint64) (word uint64, other bool) {
	word = s.word(i)
	return word, word&(wordPresent|wordSuspect) == 0 && word&wordSum != 0 && word&wordSum != sum&wordSum
}

// setVerifiedAs marks piece i as checked if what is present of it has that
// checksum.
func (s *state) setVerifiedAs(i int, sum uint64) {
	w := s.word(i)
	if w&(wordPresent|wordSuspect) == wordPresent && w&wordSum == sum&wordSum {
		atomic.CompareAndSwapUint64(&s.words[i], w, w|wordVerified)
	}
}

// withdraw makes a present piece missing if its word is still old.
func (s *state) withdraw(i int, old uint64) bool {
	return atomic.CompareAndSwapUint64(&s.words[i], old, (old+1<<wordTurnOne)&wordTurn)
}

// clear makes piece i missing, and reports whether it was present. Where it
// was not, its turn moves on all the same, for who is just about to put it
// there; but not where the word has no blocks on disk, and a store could fail.
func (s *state) clear(i int) bool {
	for {
		w := s.word(i)
		if w&wordPresent == 0 && !s.reserved(i) {
			return false
		}
		if s.withdraw(i, w) {
			return w&wordPresent != 0
		}
	}
}

// reserved reports whether this process knows that the word of piece i has
// blocks on disk.
func (s *state) reserved(i int) bool { return !s.readOnly && s.room[i/wordsAtOnce].Load() }

// settle ends the suspicion against piece i: its data has the checksum
// sum. It reports whether that is what the word says; if not, the piece
// is missing from now on.
func (s *state) settle(i int, sum uint64) bool {
	for {
		w := s.word(i)
		if w&wordSuspect == 0 {
			return w&wordPresent != 0
		}
		next := w &^ wordSuspect
		if w&wordSum != sum&wordSum {
			next = w & wordTurn
		}
		if atomic.CompareAndSwapUint64(&s.words[i], w, next) {
			return next&wordPresent != 0
		}
	}
}

func (s *state) counter(off int) *uint64 { return (*uint64)(unsafe.Pointer(&s.mem[off])) }

// taking announces that pieces are taken back. done takes how many of them
// were wrong and returns by how much that moves the counter. A process that
// dies in between leaves the two others apart, and turns are compared now and
// then.
// Who can only read the file counts nothing: moved is 0.
func (s *state) taking() (moved uint64, done func(wrong int) uint64) {
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
func (s *state) taken() (begun, ended, wrong uint64) {
	ended = atomic.LoadUint64(s.counter(offEnded)) // before begun: equal means that all is done
	return atomic.LoadUint64(s.counter(offBegun)), ended, atomic.LoadUint64(s.counter(offWrong))
}

// shared are the words as all processes see them.
func (s *state) shared() []uint64 { return wordsOf(s.mem) }
