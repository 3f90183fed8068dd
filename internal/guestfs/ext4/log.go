package ext4

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var be = binary.BigEndian

const journalMagic = 0xC03B3998

// Types of blocks in the journal, and its features: journal.rst.
const (
	blockDescriptor = 1
	blockCommit     = 2
	blockSuperV1    = 3
	blockSuperV2    = 4
	blockRevoke     = 5

	journalCompatChecksum = 0x1

	journal64bit       = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10
	journalFastCommit  = 0x20
	journalSupported   = 0x1 /* revoke */ | journal64bit | journalAsyncCommit | journalCsumV2 | journalCsumV3 | journalFastCommit
)

// Fast commits lie in the last blocks of the journal, so many if its
// superblock names no number.
const defaultFastBlocks = 256

// minJournal is how many blocks the rest of the journal has at least
// (JBD2_MIN_JOURNAL_BLOCKS); else it has no fast commits.
const minJournal = 1024

// journalLog is the journal as a ring of blocks, from first to end.
type journalLog struct {
	f          *FS
	inode      *inode
	first, end int64
	start      int64
	sequence   uint32
	compat     uint32
	incompat   uint32
	seed       uint32
	fastBlocks int64

	// What was read last: the log is read once, in order, in growing ranges.
	window   []byte
	windowAt int64
	grow     int64
}

// Ranges of the log are read in these sizes.
const (
	minWindow = 256 << 10
	maxWindow = 2 << 20
)

func crc32c(crc uint32, b []byte) uint32 {
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), b)
}

// openLog reads the journal's superblock.
func (f *FS) openLog() (*journalLog, error) {
	if f.journalInode == 0 {
		return nil, unreplayable("it lies on another device")
	}
	i, err := f.existing(uint64(f.journalInode), vfs.Regular)
	if err != nil {
		return nil, err
	}
	b, err := f.journalBlock(i, 0)
	if err != nil {
		return nil, err
	}
	kind := be.Uint32(b[4:])
	switch {
	case be.Uint32(b) != journalMagic || kind != blockSuperV1 && kind != blockSuperV2:
		return nil, unreplayable("its superblock has no magic number")
	case int64(be.Uint32(b[12:])) != f.blockSize:
		return nil, unreplayable("its blocks have another size")
	}
	l := &journalLog{
		f: f, inode: i, grow: minWindow,
		end: int64(be.Uint32(b[16:])), first: int64(be.Uint32(b[20:])),
		sequence: be.Uint32(b[24:]), start: int64(be.Uint32(b[28:])),
	}
	if kind == blockSuperV2 {
		l.compat, l.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
		l.seed = crc32c(^uint32(0), b[0x30:0x40])
	}
	if unknown := l.incompat &^ uint32(journalSupported); unknown != 0 {
		return nil, unreplayable(fmt.Sprintf("it has the unknown features %#x", unknown))
	}
	if l.checksummed() && !checksumAt(^uint32(0), b[:1024], 0xfc) {
		return nil, unreplayable("the checksum of its superblock is wrong")
	}
	if l.incompat&journalFastCommit != 0 {
		if l.fastBlocks = int64(be.Uint32(b[0x54:])); l.fastBlocks == 0 {
			l.fastBlocks = defaultFastBlocks
		}
		if l.end-l.fastBlocks < minJournal {
			l.fastBlocks = 0
		}
		l.end -= l.fastBlocks
	}
	if l.first < 1 || l.end <= l.first || l.end+l.fastBlocks > f.blocksIn(i) ||
		l.start != 0 && (l.start < l.first || l.start >= l.end) {
		return nil, unreplayable("its superblock contradicts itself")
	}
	return l, nil
}

func (l *journalLog) checksummed() bool { return l.incompat&(journalCsumV2|journalCsumV3) != 0 }

// checksumAt compares a block with the checksum in it, which was computed
// while those four bytes were zero.
func checksumAt(seed uint32, b []byte, at int) bool {
	crc := crc32c(seed, b[:at])
	crc = crc32c(crc, []byte{0, 0, 0, 0})
	return crc32c(crc, b[at+4:]) == be.Uint32(b[at:])
}

// tailOK compares a descriptor or revoke block with the checksum at its end.
func (l *journalLog) tailOK(b []byte) bool {
	return !l.checksummed() || checksumAt(l.seed, b, len(b)-4)
}

// dataOK compares a logged block with the checksum in its tag.
func (l *journalLog) dataOK(b []byte, sequence, want uint32) bool {
	if !l.checksummed() {
		return true
	}
	crc := crc32c(crc32c(l.seed, be.AppendUint32(nil, sequence)), b)
	if l.incompat&journalCsumV3 != 0 {
		return crc == want
	}
	return crc&0xffff == want
}

// after returns the block that follows in the ring.
func (l *journalLog) after(block int64) int64 {
	if block++; block >= l.end {
		return l.first
	}
	return block
}

// block reads a block of the log; the result holds until the next call.
func (l *journalLog) block(number int64) ([]byte, error) {
	bs := l.f.blockSize
	if at := (number - l.windowAt) * bs; number >= l.windowAt && at < int64(len(l.window)) {
		return l.window[at : at+bs], nil
	}
	r, err := l.f.mapped(l.inode, number, l.end)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, unreplayable("it has a hole")
	}
	n := min(r.count*bs, max(l.grow, bs))
	l.grow = min(2*l.grow, maxWindow)
	if int64(cap(l.window)) < n {
		l.window = make([]byte, n)
	}
	l.window, l.windowAt = l.window[:n], number
	if err := vfs.ReadFull(l.f.img, l.window, int64(r.physical)*bs); err != nil {
		l.window = l.window[:0]
		return nil, err
	}
	return l.window[:bs], nil
}

// journalBlock reads a block of the journal by itself.
func (f *FS) journalBlock(i *inode, number int64) ([]byte, error) {
	r, err := f.mapped(i, number, number+1)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, unreplayable("it has a hole")
	}
	return f.pages.Bytes(int64(r.physical)*f.blockSize, int(f.blockSize))
}

// tag is the home block of a logged block.
type tag struct {
	home    uint64
	escaped bool
	crc     uint32
}

// Flags of tags.
const (
	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// tags reads the tags in a descriptor block. Their size depends on the
// features: journal.rst, "Descriptor Block".
func (l *journalLog) tags(b []byte) (all []tag) {
	size, end := 8, len(b)
	switch {
	case l.incompat&journalCsumV3 != 0:
		size = 16
	default:
		if l.incompat&journalCsumV2 != 0 {
			size += 2
		}
		if l.incompat&journal64bit != 0 {
			size += 4
		}
	}
	if l.checksummed() {
		end -= 4
	}
	for at := 12; at+size <= end; {
		t := tag{home: uint64(be.Uint32(b[at:]))}
		var flags uint32
		if l.incompat&journalCsumV3 != 0 {
			flags, t.crc = be.Uint32(b[at+4:]), be.Uint32(b[at+12:])
		} else {
			flags, t.crc = uint32(be.Uint16(b[at+6:])), uint32(be.Uint16(b[at+4:]))
		}
		if l.incompat&journal64bit != 0 {
			t.home |= uint64(be.Uint32(b[at+8:])) << 32
		}
		t.escaped = flags&tagEscaped != 0
		all = append(all, t)
		at += size
		if flags&tagSameUUID == 0 {
			at += 16
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return all
}

// revoked visits the blocks in a revoke block.
func (l *journalLog) revoked(b []byte, visit func(block uint64) error) error {
	size, end := 4, int(be.Uint32(b[12:]))
	if l.incompat&journal64bit != 0 {
		size = 8
	}
	limit := len(b)
	if l.checksummed() {
		limit -= 4
	}
	if end > limit {
		return unreplayable("a revoke block has more bytes than fit")
	}
	for at := 16; at+size <= end; at += size {
		block := uint64(be.Uint32(b[at:]))
		if size == 8 {
			block = be.Uint64(b[at:])
		}
		if err := visit(block); err != nil {
			return err
		}
	}
	return nil
}

// fastCommits reports whether the fast commits in the journal follow the
// transaction before sequence. Each begins with a head that names it.
func (l *journalLog) fastCommits(sequence uint32) (bool, error) {
	if l.fastBlocks < 2 {
		return false, nil
	}
	// The first of the blocks is not used.
	b, err := l.f.journalBlock(l.inode, l.end+1)
	if err != nil {
		return false, err
	}
	const head = 9
	return le.Uint16(b) == head && le.Uint32(b[8:]) == sequence, nil
}
