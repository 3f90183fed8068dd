package disk

import "os"

// Try does with f, which is empty and on the file system of a cache, what
// state files need: locks, room that is reserved, and shared maps. It reports
// whether room is made by writing zeros.
func Try(f *os.File) (zeros bool, err error) {
	const key = "0000000000000000000000000000000000000000000000000000000000000000"
	s, err := mapLocked(f, key, 2*wordsAtOnce, false, Lock)
	if err != nil {
		return false, err
	}
	defer s.unmap()
	if err := s.reserve(wordsAtOnce); err != nil {
		return false, err
	}
	if _, err := s.TryLockPieces(wordsAtOnce, wordsAtOnce+1); err != nil {
		return false, err
	}
	defer s.UnlockPieces(wordsAtOnce, wordsAtOnce+1)
	s.put(wordsAtOnce, s.Word(wordsAtOnce), 1, false)
	return s.hasRoom(1), s.Seal()
}
