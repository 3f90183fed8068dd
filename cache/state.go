package cache

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
//	4096  8  a word for each piece
//
// A word: bit 63 present, bit 62 verified, bit 61 suspect, bits 56 to 60
// how often the piece was taken back, bits 0 to 55 the low bits of the xxh64
// of the piece's payload. One atomic change of it sets presence and checksum
// together.
const (
	stateMagic   = "epochfs\x01"
	stateVersion = 1
	stateHeader  = 4096

	offPieces = 12
	offKey    = 16
	offSum    = 48
	offBoot   = 64
	offFlags  = 80
	offSeal   = 88

	flagSealed = 1
	flagUnsafe = 2

	wordPresent  = 1 << 63
	wordVerified = 1 << 62 // checked against a digest of the artifact
	wordSuspect  = 1 << 61 // written before the last boot, not looked at since
	wordSum      = 1<<56 - 1
)

// errDamaged says that a state file cannot be believed at all. It costs a
// refetch, not an error.
var errDamaged = errors.New("state file is damaged")

type state struct {
	file  *os.File
	mem   []byte
	words []uint64      // the words in mem, or in own
	room  []atomic.Bool // stretches of wordsAtOnce words that have blocks on disk

	zeros     sync.Mutex // over the writing of zeros, see reserve.go
	zerosHeld time.Time  // when another process was last found to take long over that

	// Where the file can only be read, see readonly.go.
	readOnly bool
	own      []byte      // a private mapping: what this process finds out of the words
	intactAt bool        // the words were those of the seal when the file was opened
	unsealed atomic.Bool // this process found a piece wrong
}

// openState maps the state file of a cached file with the given key and
// number of pieces. A new file is laid out, one from before the last boot
// has its pieces marked suspect, unless it is sealed: then they were on
// disk before it was.
func openState(f *os.File, key string, pieces int) (*state, error) {
	if err := lock(f, unix.F_WRLCK, lockSetup, 1); err != nil {
		return nil, err
	}
	defer unlock(f, lockSetup, 1)
	return openStateLocked(f, key, pieces)
}

func openStateLocked(f *os.File, key string, pieces int) (*state, error) {
	size := int64(stateHeader + 8*pieces)
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
		return nil, fmt.Errorf("%w: %d bytes, not %d", errDamaged, info.Size(), size)
	}
	mem, err := mapFile(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &state{file: f, mem: mem, words: wordsOf(mem)}
	s.room = make([]atomic.Bool, (pieces+wordsAtOnce-1)/wordsAtOnce)
	head := header(key, pieces)
	switch {
	case fresh:
		crashpoint.Reach("state sized")
		copy(mem, head)
	case !bytes.Equal(mem[:len(head)], head):
		s.unmap()
		return nil, fmt.Errorf("%w: header", errDamaged)
	}
	s.enterBoot()
	return s, nil
}

// mapFile maps another open file description than f's, whose locks then go
// with its descriptor. A mapping is the last that goes of a process that was
// killed, and one of its threads may stay in the kernel for long.
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

// wordsOf are the words in a mapped state file.
func wordsOf(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)[stateHeader/8:]
}

// header returns the part of the header that never changes.
func header(key string, pieces int) []byte {
	b := make([]byte, offSum+8)
	copy(b, stateMagic)
	binary.LittleEndian.PutUint32(b[8:], stateVersion)
	binary.LittleEndian.PutUint32(b[offPieces:], uint32(pieces))
	raw, err := hex.DecodeString(key)
	if err != nil || len(raw) != 32 {
		panic("cache: key is not a sha256 in hex: " + key)
	}
	copy(b[offKey:], raw)
	binary.LittleEndian.PutUint64(b[offSum:], xxhash.Sum64(b[:offSum]))
	return b
}

// enterBoot marks what an earlier run of the machine left unsealed. What is
// read from now on is what the disk has, whatever it failed to take before.
func (s *state) enterBoot() {
	if s.thisBoot() {
		return
	}
	if !s.intact() {
		atomic.StoreUint32(s.flags(), 0)
		s.suspectAll()
	}
	clear(s.mem[offBegun : offWrong+8]) // no kernel keeps pages from before
	id := bootID()
	copy(s.mem[offBoot:], id[:])
}

// thisBoot says that the file was opened in this run of the machine.
func (s *state) thisBoot() bool {
	id := bootID()
	return bytes.Equal(s.mem[offBoot:offBoot+len(id)], id[:])
}

func (s *state) suspectAll() {
	s.each(func(i int) {
		if w := s.word(i); w&wordPresent != 0 {
			atomic.StoreUint64(&s.words[i], w|wordSuspect)
		}
	})
}

// bootID names this run of the machine.
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

func (s *state) unmap() {
	_ = unix.Munmap(s.mem) // fails only for an address that is not mapped
	if s.own != nil {
		_ = unix.Munmap(s.own)
	}
	s.mem, s.own, s.words = nil, nil, nil
}

func (s *state) word(i int) uint64 { return atomic.LoadUint64(&s.words[i]) }

// each calls f for every word that may be other than 0: those of pages
// that were never stored to are left out.
func (s *state) each(f func(i int)) {
	fd, end := int(s.file.Fd()), int64(len(s.mem))
	for at := int64(stateHeader); at < end; {
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
		for i := (max(data, at) - stateHeader) / 8; i < (min(hole, end)-stateHeader)/8; i++ {
			f(int(i))
		}
		at = hole
	}
}

// has says that piece i may be read from the data file.
func (s *state) has(i int) bool {
	return s.word(i)&(wordPresent|wordSuspect) == wordPresent
}

// hasAll says it of pieces [i, j).
func (s *state) hasAll(i, j int) bool {
	for ; i < j; i++ {
		if !s.has(i) {
			return false
		}
	}
	return true
}

func (s *state) suspect(i int) bool {
	return s.word(i)&(wordPresent|wordSuspect) == wordPresent|wordSuspect
}

func (s *state) verified(i int) bool {
	return s.word(i)&(wordPresent|wordSuspect|wordVerified) == wordPresent|wordVerified
}

func (s *state) flags() *uint32 { return (*uint32)(unsafe.Pointer(&s.mem[offFlags])) }

// sealed says that all pieces are present, verified and were on disk
// before this was said.
func (s *state) sealed() bool { return s.flag(flagSealed) && !s.unsealed.Load() }

// flag says that a flag is set. Those of an earlier run of the machine count
// only where the seal was found to be whole.
func (s *state) flag(which uint32) bool {
	return atomic.LoadUint32(s.flags())&which != 0 && (!s.readOnly || s.intactAt || s.thisBoot())
}

// intact says that the file was sealed, and that its words are what they
// were then: what one flag says is not believed after a boot.
func (s *state) intact() bool {
	return atomic.LoadUint32(s.flags())&flagSealed != 0 && binary.LittleEndian.Uint64(s.mem[offSeal:]) == xxhash.Sum64(s.mem[stateHeader:])
}

// unsafe says that the disk has once failed to take the data: what it says
// of them later is not to be believed, for the kernel does not try again.
func (s *state) unsafe() bool { return s.flag(flagUnsafe) }

func (s *state) setUnsafe() { atomic.OrUint32(s.flags(), flagUnsafe) }

// seal says so, and puts it on disk.
func (s *state) seal() error {
	binary.LittleEndian.PutUint64(s.mem[offSeal:], xxhash.Sum64(s.mem[stateHeader:]))
	if err := unix.Msync(s.mem, unix.MS_SYNC); err != nil {
		return os.NewSyscallError("msync", err)
	}
	crashpoint.Reach("words synced")
	atomic.OrUint32(s.flags(), flagSealed)
	crashpoint.Reach("sealed")
	return os.NewSyscallError("msync", unix.Msync(s.mem[:stateHeader], unix.MS_SYNC))
}

// unseal takes it back.
// On disk too, before anything else is written.
func (s *state) unseal() {
	if s.readOnly {
		s.unsealed.Store(true)
		return
	}
	if atomic.AndUint32(s.flags(), ^uint32(flagSealed))&flagSealed != 0 {
		_ = unix.Msync(s.mem[:stateHeader], unix.MS_SYNC) // fails only for memory that is not mapped
	}
}

// tryLockPieces claims the fetch of pieces [i, j) among processes.
func (s *state) tryLockPieces(i, j int) (bool, error) {
	if s.readOnly { // nobody can be kept from them, and need not: nothing is written here
		return !lockedElsewhere(s.file, stateHeader+8*int64(i), 8*int64(j-i)), nil
	}
	return tryLock(s.file, unix.F_WRLCK, stateHeader+8*int64(i), 8*int64(j-i))
}

// heldElsewhere says that another process has claimed piece i.
func (s *state) heldElsewhere(i int) bool {
	return lockedElsewhere(s.file, stateHeader+8*int64(i), 8)
}

func (s *state) unlockPieces(i, j int) {
	unlock(s.file, stateHeader+8*int64(i), 8*int64(j-i))
}
