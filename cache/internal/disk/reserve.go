package disk

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// A store to a mapped page for which the disk has no room kills the process,
// so blocks are reserved before a word is stored. On file systems without
// fallocate (ext2, ext3, NFS before 4.2) they are reserved by writing zeros.
// That must happen once, and before any process stores a word there: so it is
// done under a lock, and noted by a bit in the header.

const (
	// wordsAtOnce is the number of words that blocks are reserved for at once:
	// what a manifest only claims takes no room.
	wordsAtOnce = 8192
	// offRoom is where the header has a bit for each stretch of wordsAtOnce
	// words that zeros were written for.
	offRoom  = 128
	mostRoom = 8 * (StateHeader - offRoom) // bits
	// smallestBlock is the smallest block of a file system: 512 bytes of
	// which one is not 0 have blocks.
	smallestBlock = 512
	// roomPatience bounds the wait for a process that writes zeros.
	roomPatience = time.Second
)

// reserve gives the word of piece i blocks on disk.
func (s *State) reserve(i int) error {
	n := i / wordsAtOnce
	if s.room[n].Load() {
		return nil
	}
	first := n * wordsAtOnce
	last := min(first+wordsAtOnce, len(s.words))
	off, size := StateHeader+8*int64(first), 8*int64(last-first)
	err := unix.Fallocate(int(s.file.Fd()), 0, off, size)
	if noFallocate(err) {
		err = s.reserveZeros(n, off, size)
	} else {
		err = os.NewSyscallError("fallocate", err)
	}
	if err == nil {
		s.room[n].Store(true)
	}
	return err
}

// noFallocate reports whether err means that a file system has no fallocate.
func noFallocate(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// reserveZeros is reserve of stretch n, which is size bytes from off on,
// without fallocate.
func (s *State) reserveZeros(n int, off, size int64) error {
	if n >= mostRoom {
		return fmt.Errorf("%d pieces without fallocate: %w", len(s.words), unix.EFBIG)
	}
	s.zeros.Lock()
	defer s.zeros.Unlock()
	if s.hasRoom(n) {
		return nil
	}
	if time.Since(s.zerosHeld) < LockPatience { // its holder is stopped, and every piece would wait
		return ErrHeld
	}
	err := lockFor(s.file, unix.F_WRLCK, lockRoom, 1, roomPatience)
	if errors.Is(err, ErrHeld) {
		s.zerosHeld = time.Now()
	}
	if err != nil {
		return err
	}
	defer Unlock(s.file, lockRoom, 1)
	if s.hasRoom(n) {
		return nil
	}
	// A file that was copied from elsewhere may have words here. They have
	// blocks, and stay as they are.
	for _, free := range zeroRuns(s.mem[off:off+size], off) {
		if err := writeZeros(s.file, free.from, free.to-free.from); err != nil {
			return err
		}
	}
	crashpoint.Reach("room made")
	atomic.OrUint32(s.roomBits(n), 1<<(n%32))
	return nil
}

// reserved reports whether this process knows that the word of piece i has
// blocks on disk.
func (s *State) reserved(i int) bool { return !s.readOnly && s.room[i/wordsAtOnce].Load() }

// hasRoom reports whether zeros were written for stretch n.
func (s *State) hasRoom(n int) bool { return atomic.LoadUint32(s.roomBits(n))&(1<<(n%32)) != 0 }

func (s *State) roomBits(n int) *uint32 {
	return (*uint32)(unsafe.Pointer(&s.mem[offRoom+n/32*4]))
}

// byteRun is bytes [from, to) of a file.
type byteRun struct{ from, to int64 }

// zeroRuns returns the runs of smallestBlock that are all zeros in mem, which
// lies at off.
func zeroRuns(mem []byte, off int64) (runs []byteRun) {
	for at := 0; at < len(mem); at += smallestBlock {
		end := min(at+smallestBlock, len(mem))
		if !allZero(mem[at:end]) {
			continue
		}
		if last := len(runs) - 1; last >= 0 && runs[last].to == off+int64(at) {
			runs[last].to = off + int64(end)
		} else {
			runs = append(runs, byteRun{off + int64(at), off + int64(end)})
		}
	}
	return runs
}

// allZero reports whether b is all zeros. It reads b as other processes may
// write it: word by word.
func allZero(b []byte) bool {
	for at := 0; at < len(b); at += 8 {
		if atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[at]))) != 0 {
			return false
		}
	}
	return true
}

// writeZeros writes n zeros at off and puts them on disk: a file server on
// the network reports only then that it has no room.
func writeZeros(f *os.File, off, n int64) error {
	if _, err := f.WriteAt(make([]byte, n), off); err != nil {
		return err
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(f.Fd())))
}

// reserveHeader gives a new state file blocks for its header.
func reserveHeader(f *os.File) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, StateHeader)
	if noFallocate(err) {
		if err = writeZeros(f, 0, StateHeader); err != nil {
			_ = f.Truncate(0) // else the next to open it takes it for damaged
		}
		return err
	}
	return os.NewSyscallError("fallocate", err)
}
