package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// The state file, mapped by every process that has the file open. All
// numbers are little-endian.
//
//	   0  8  magic "epochfs\x01"
//	   8  4  format version
//	  12  4  number of pieces
//	  16 32  the file's key
//	  48  8  xxh64 of bytes 0 to 48
//	  64 16  boot id of the machine's run that last opened the file
//	  80  4  flags: 1 sealed, 2 the disk failed to take the data
//	  88  8  xxh64 of all words, as they were when the file was sealed
//	  96 24  three counters of pieces that were taken back; see words.go
//	 128    to 4096, a bit for each 8192 words: zeros were written for them,
//	        where the file system has no fallocate
//	4096  8  a word for each piece; see Word
const (
	stateMagic   = "epochfs\x01"
	stateVersion = 1
	StateHeader  = 4096 // bytes before the first word

	offPieces = 12
	offKey    = 16
	offSum    = 48
	OffBoot   = 64 // exported for tests that damage a state
	OffFlags  = 80
	OffSeal   = 88

	FlagSealed = 1
	FlagUnsafe = 2
)

// ErrDamaged is the error of a state file or a record that cannot be believed
// at all. It costs a refetch.
var ErrDamaged = errors.New("state file is damaged")

// State is the mapped state file of a cached file. It is safe for concurrent
// use.
type State struct {
	file  *os.File
	mem   []byte
	words []uint64      // the words in mem, or in own
	room  []atomic.Bool // stretches of wordsAtOnce words that have blocks on disk

	zeros     sync.Mutex // held while zeros are written, see reserve.go
	zerosHeld time.Time  // when another process was last found to take long over that

	// Of a file that can only be read.
	readOnly bool
	own      []byte      // a private mapping: what this process finds out about the words
	intactAt bool        // the words were those of the seal when the file was opened
	unsealed atomic.Bool // this process found a piece wrong
}

// mapState maps the state file of a cached file with the given key and number
// of pieces. A new file is laid out. The pieces of one from before the last
// boot are marked suspect, unless it is sealed: then they were on disk before
// it was. The caller holds the set-up lock.
func mapState(f *os.File, key string, pieces int) (*State, error) {
	size := int64(StateHeader + 8*pieces)
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	fresh := info.Size() == 0
	if fresh {
		if err := reserveHeader(f); err != nil {
			return nil, err
		}
		if err := f.Truncate(size); err != nil {
			return nil, err
		}
	} else if info.Size() != size {
		return nil, fmt.Errorf("%w: %d bytes, not %d", ErrDamaged, info.Size(), size)
	}
	mem, err := mapFile(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &State{file: f, mem: mem, words: wordsOf(mem)}
	s.room = make([]atomic.Bool, (pieces+wordsAtOnce-1)/wordsAtOnce)
	head := header(key, pieces)
	switch {
	case fresh:
		crashpoint.Reach("state sized")
		copy(mem, head)
	case !bytes.Equal(mem[:len(head)], head):
		s.unmap()
		return nil, fmt.Errorf("%w: header", ErrDamaged)
	}
	s.enterBoot()
	return s, nil
}

// mapStateReadOnly maps a state file that can only be read. The header is
// shared with all processes. The words are a private mapping, whose pages are
// the file's until this process finds out something about them.
func mapStateReadOnly(f *os.File, key string, pieces int) (*State, error) {
	size := int64(StateHeader + 8*pieces)
	if info, err := f.Stat(); err != nil || info.Size() != size {
		return nil, fmt.Errorf("%w: it has not %d bytes (%v)", ErrDamaged, size, err)
	}
	mem, err := mapFile(f, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &State{file: f, mem: mem, readOnly: true}
	if s.own, err = mapFile(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
		s.unmap()
		return nil, err
	}
	s.words = wordsOf(s.own)
	if head := header(key, pieces); !bytes.Equal(mem[:len(head)], head) {
		s.unmap()
		return nil, fmt.Errorf("%w: header", ErrDamaged)
	}
	if s.intactAt = s.intact(); !s.intactAt && !s.thisBoot() {
		s.suspectAll()
	}
	return s, nil
}

// mapFile maps another open file description than f's, whose locks then go
// with its descriptor. The mappings of a killed process go last, and one of its
// threads may stay in the kernel for long.
func mapFile(f *os.File, size int64, prot, flags int) ([]byte, error) {
	fd, mode := int(f.Fd()), unix.O_RDONLY
	if flags&unix.MAP_SHARED != 0 && prot&unix.PROT_WRITE != 0 {
		mode = unix.O_RDWR
	}
	if other, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), mode|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(other)
		fd = other
	}
	mem, err := unix.Mmap(fd, 0, int(size), prot, flags)
	return mem, os.NewSyscallError("mmap", err)
}

// header returns the part of the header that never changes.
func header(key string, pieces int) []byte {
	b := make([]byte, offSum+8)
	copy(b, stateMagic)
	binary.LittleEndian.PutUint32(b[8:], stateVersion)
	binary.LittleEndian.PutUint32(b[offPieces:], uint32(pieces))
	raw, err := hex.DecodeString(key)
	if err != nil || len(raw) != 32 {
		panic("disk: key is not a sha256 in hex: " + key)
	}
	copy(b[offKey:], raw)
	binary.LittleEndian.PutUint64(b[offSum:], xxhash.Sum64(b[:offSum]))
	return b
}

// enterBoot marks the pieces that an earlier run of the machine left unsealed as
// suspect. From now on reads return what the disk has, whatever it failed to
// take before.
func (s *State) enterBoot() {
	if s.thisBoot() {
		return
	}
	if !s.intact() {
		atomic.StoreUint32(s.flags(), 0)
		s.suspectAll()
	}
	clear(s.mem[offBegun : offWrong+8]) // no kernel keeps pages from before
	id := bootID()
	copy(s.mem[OffBoot:], id[:])
}

// thisBoot reports whether the file was opened in this run of the machine.
func (s *State) thisBoot() bool {
	id := bootID()
	return bytes.Equal(s.mem[OffBoot:OffBoot+len(id)], id[:])
}

// suspectAll marks every present piece as suspect.
func (s *State) suspectAll() {
	s.Each(func(i int) {
		if w := s.Word(i); w.Present() {
			atomic.StoreUint64(&s.words[i], uint64(w|WordSuspect))
		}
	})
}

// bootID returns the name of this run of the machine.
var bootID = sync.OnceValue(func() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		var raw []byte
		raw, err = hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
		copy(id[:], raw)
	}
	if err != nil {
		_, _ = rand.Read(id[:]) // never fails; an id of its own distrusts everything found
	}
	return id
})

func (s *State) unmap() {
	_ = unix.Munmap(s.mem) // fails only for an address that is not mapped
	if s.own != nil {
		_ = unix.Munmap(s.own)
	}
	s.mem, s.own, s.words = nil, nil, nil
}

func (s *State) flags() *uint32 { return (*uint32)(unsafe.Pointer(&s.mem[OffFlags])) }

// flag reports whether a flag is set. Those of an earlier run of the machine
// count only if the seal was found to be whole.
func (s *State) flag(which uint32) bool {
	return atomic.LoadUint32(s.flags())&which != 0 && (!s.readOnly || s.intactAt || s.thisBoot())
}

// Sealed reports whether all pieces are present and verified, and were on
// disk before the seal was set.
func (s *State) Sealed() bool { return s.flag(FlagSealed) && !s.unsealed.Load() }

// intact reports whether the file was sealed and its words are what they were
// then. The flag alone is not believed after a boot.
func (s *State) intact() bool {
	return atomic.LoadUint32(s.flags())&FlagSealed != 0 && binary.LittleEndian.Uint64(s.mem[OffSeal:]) == xxhash.Sum64(s.mem[StateHeader:])
}

// Unsafe reports whether the disk has once failed to take the data. What it
// gives back later is not to be believed, because the kernel does not try
// again to write it.
func (s *State) Unsafe() bool { return s.flag(FlagUnsafe) }

// SetUnsafe sets the flag that Unsafe reports.
func (s *State) SetUnsafe() { atomic.OrUint32(s.flags(), FlagUnsafe) }

// Seal puts all words on disk, and then the flag that says so. The data must
// be on disk.
func (s *State) Seal() error {
	binary.LittleEndian.PutUint64(s.mem[OffSeal:], xxhash.Sum64(s.mem[StateHeader:]))
	if err := unix.Msync(s.mem, unix.MS_SYNC); err != nil {
		return os.NewSyscallError("msync", err)
	}
	crashpoint.Reach("words synced")
	atomic.OrUint32(s.flags(), FlagSealed)
	crashpoint.Reach("sealed")
	return os.NewSyscallError("msync", unix.Msync(s.mem[:StateHeader], unix.MS_SYNC))
}

// Unseal takes the seal off, on disk too, before anything else is written.
func (s *State) Unseal() {
	if s.readOnly {
		s.unsealed.Store(true)
		return
	}
	if atomic.AndUint32(s.flags(), ^uint32(FlagSealed))&FlagSealed != 0 {
		_ = unix.Msync(s.mem[:StateHeader], unix.MS_SYNC) // fails only for memory that is not mapped
	}
}

// TryLockPieces claims the fetch of pieces [i, j) among processes. It reports
// false if another process has claimed any of them.
func (s *State) TryLockPieces(i, j int) (bool, error) {
	if s.readOnly { // nobody can be kept from them, and need not: nothing is written here
		return !lockedElsewhere(s.file, StateHeader+8*int64(i), 8*int64(j-i)), nil
	}
	return TryLock(s.file, unix.F_WRLCK, StateHeader+8*int64(i), 8*int64(j-i))
}

// HeldElsewhere reports whether another process has claimed piece i.
func (s *State) HeldElsewhere(i int) bool {
	return lockedElsewhere(s.file, StateHeader+8*int64(i), 8)
}

// UnlockPieces gives up the claim of pieces [i, j).
func (s *State) UnlockPieces(i, j int) {
	Unlock(s.file, StateHeader+8*int64(i), 8*int64(j-i))
}

// TryLockSeal takes the lock for verifying the file as a whole. It
// reports false if another process has it.
func (s *State) TryLockSeal() (bool, error) { return TryLock(s.file, unix.F_WRLCK, lockSeal, 1) }

// UnlockSeal gives that lock back.
func (s *State) UnlockSeal() { Unlock(s.file, lockSeal, 1) }
