package ext4

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var le = binary.LittleEndian

// Where the superblock lies, and the parts of the layout that its fields
// have: Documentation/filesystems/ext4/super.rst in the kernel.
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53
)

// Features that change how the rest is read.
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200

	incompatFiletype  = 0x2
	incompatRecover   = 0x4
	incompatMetaBG    = 0x10
	incompatExtents   = 0x40
	incompat64bit     = 0x80
	incompatFlexBG    = 0x200
	incompatLargedir  = 0x4000
	incompatEncrypt   = 0x10000
	incompatCasefold  = 0x20000
	incompatSupported = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64bit |
		0x100 /* mmp */ | incompatFlexBG | 0x400 /* ea_inode */ | 0x2000 /* metadata_csum_seed */ |
		incompatLargedir | 0x8000 /* inline_data */ | incompatEncrypt | incompatCasefold

	rocompatSparseSuper  = 0x1
	rocompatHugeFile     = 0x8
	rocompatGdtCsum      = 0x10
	rocompatBigalloc     = 0x200
	rocompatMetadataCsum = 0x400
)

// incompatNames are the names of features that dumpe2fs shows.
var incompatNames = map[uint32]string{0x1: "compression", 0x8: "journal_dev", 0x1000: "dirdata"}

// super has the fields of the superblock that reading needs.
type super struct {
	blockSize        int64
	blocks           uint64
	firstBlock       uint32 // block of group 0: 1 with blocks of 1 KiB
	blocksPerGroup   uint32
	inodes           uint32
	inodesPerGroup   uint32
	inodeSize        int
	descSize         int
	firstMetaGroup   uint32
	backupGroups     [2]uint32
	journalInode     uint32
	compat, incompat uint32
	rocompat         uint32
	valid            bool // unmounted cleanly, or mounted with a journal
	unsignedHash     bool
	hashSeed         [4]uint32
	label, uuid      string
}

func parseSuper(b []byte) (*super, error) {
	if le.Uint16(b[0x38:]) != superMagic {
		return nil, fmt.Errorf("%w: ext4 superblock: no magic number", vfs.ErrDamaged)
	}
	s := &super{
		inodes:         le.Uint32(b[0x0:]),
		blocks:         uint64(le.Uint32(b[0x4:])),
		firstBlock:     le.Uint32(b[0x14:]),
		blocksPerGroup: le.Uint32(b[0x20:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		valid:          le.Uint16(b[0x3a:])&1 != 0,
		inodeSize:      128,
		descSize:       32,
		compat:         le.Uint32(b[0x5c:]),
		incompat:       le.Uint32(b[0x60:]),
		rocompat:       le.Uint32(b[0x64:]),
		uuid:           UUID(b[0x68:0x78]),
		label:          Label(b[0x78:0x88]),
		journalInode:   le.Uint32(b[0xe0:]),
		firstMetaGroup: le.Uint32(b[0x104:]),
		unsignedHash:   le.Uint32(b[0x160:])&2 != 0,
		hashSeed:       [4]uint32{le.Uint32(b[0xec:]), le.Uint32(b[0xf0:]), le.Uint32(b[0xf4:]), le.Uint32(b[0xf8:])},
		backupGroups:   [2]uint32{le.Uint32(b[0x24c:]), le.Uint32(b[0x250:])},
	}
	if s.hashSeed == [4]uint32{} { // MD4's
		s.hashSeed = [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	}
	if le.Uint32(b[0x4c:]) > 0 { // revision 1
		s.inodeSize = int(le.Uint16(b[0x58:]))
	} else {
		s.compat, s.incompat, s.rocompat = 0, 0, 0
	}
	if s.incompat&incompat64bit != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.descSize = int(le.Uint16(b[0xfe:]))
	}
	exponent := le.Uint32(b[0x18:])
	if exponent > 6 {
		return nil, fmt.Errorf("%w: ext4 superblock: block size 2^%d", vfs.ErrDamaged, 10+uint64(exponent))
	}
	s.blockSize = 1024 << exponent
	if err := s.checkFeatures(); err != nil {
		return nil, err
	}
	return s, s.check()
}

func (s *super) checkFeatures() error {
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if s.incompat&bit&^incompatSupported == 0 {
			continue
		}
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("FEATURE_I%d", bits.TrailingZeros32(bit))
		}
		names = append(names, name)
	}
	if names != nil {
		return fmt.Errorf("ext4 with %s: %w", strings.Join(names, ", "), vfs.ErrUnsupported)
	}
	return nil
}

func (s *super) check() error {
	perBlock := s.blockSize / int64(max(1, s.inodeSize))
	switch {
	case s.blocks == 0 || s.blocks > 1<<44 || uint64(s.firstBlock) >= s.blocks || s.firstBlock > 1:
		return fmt.Errorf("%w: ext4 superblock: %d blocks from %d", vfs.ErrDamaged, s.blocks, s.firstBlock)
	case s.blocksPerGroup == 0 || s.inodesPerGroup == 0 || int64(s.inodesPerGroup) > 8*s.blockSize:
		return fmt.Errorf("%w: ext4 superblock: groups of %d blocks and %d inodes", vfs.ErrDamaged, s.blocksPerGroup, s.inodesPerGroup)
	case int64(s.blocksPerGroup) > 8*s.blockSize && s.rocompat&rocompatBigalloc == 0:
		return fmt.Errorf("%w: ext4 superblock: groups of %d blocks", vfs.ErrDamaged, s.blocksPerGroup)
	case s.inodeSize < 128 || perBlock == 0 || s.inodeSize&(s.inodeSize-1) != 0:
		return fmt.Errorf("%w: ext4 superblock: inodes of %d bytes", vfs.ErrDamaged, s.inodeSize)
	case s.descSize < 32 || int64(s.descSize) > s.blockSize || s.descSize&(s.descSize-1) != 0:
		return fmt.Errorf("%w: ext4 superblock: group descriptors of %d bytes", vfs.ErrDamaged, s.descSize)
	}
	return nil
}

// kind is the name of the oldest driver that can read the file system.
func (s *super) kind() string { return Kind(s.compat, s.incompat, s.rocompat) }

// Kind names the file system by its features, as blkid does.
func Kind(compat, incompat, rocompat uint32) string {
	const ext3Incompat = incompatFiletype | incompatRecover | incompatMetaBG
	const ext3Rocompat = 0x7 // sparse_super, large_file, btree_dir
	switch {
	case incompat&^ext3Incompat != 0 || rocompat&^ext3Rocompat != 0:
		return "ext4"
	case compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// groups is the number of block groups.
func (s *super) groups() uint64 {
	return (s.blocks - uint64(s.firstBlock) + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (s *super) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparseSuper2 != 0:
		return group == uint64(s.backupGroups[0]) || group == uint64(s.backupGroups[1])
	case group == 1 || s.rocompat&rocompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		for power := base; power <= group; power *= base {
			if power == group {
				return true
			}
		}
	}
	return false
}

// descriptor returns where the descriptor of a group lies.
func (s *super) descriptor(group uint64) (block uint64, offset int) {
	perBlock := uint64(s.blockSize) / uint64(s.descSize)
	nr := group / perBlock
	offset = int(group%perBlock) * s.descSize
	if s.incompat&incompatMetaBG == 0 || nr < uint64(s.firstMetaGroup) {
		return superOffset/uint64(s.blockSize) + 1 + nr, offset
	}
	first := nr * perBlock
	block = uint64(s.firstBlock) + first*uint64(s.blocksPerGroup)
	if s.hasSuper(first) {
		block++
	}
	if s.blockSize == 1024 && nr == 0 && s.firstBlock == 0 {
		block++
	}
	return block, offset
}

// UUID formats 16 bytes; none are an empty string.
func UUID(b []byte) string {
	if [16]byte(b) == [16]byte{} {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Label returns a text that ends at its first zero byte.
func Label(b []byte) string {
	text, _, _ := strings.Cut(string(b), "\x00")
	return text
}
