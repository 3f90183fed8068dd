package xfs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var be = binary.BigEndian

// Features that change how the rest is read: xfs_format.h.
const (
	versionDirV2   = 0x2000
	versionMore    = 0x8000 // features2 is valid
	features2Ftype = 0x200

	incompatFtype     = 0x1
	incompatSupported = incompatFtype | 0x2 /* spinodes */ | 0x4 /* meta_uuid */ | 0x8 /* bigtime */ |
		0x10 /* needsrepair */ | 0x20 /* nrext64 */ | 0x40 /* exchange */ | 0x80 /* parent */
)

// incompatNames are the features whose file systems are refused.
var incompatNames = map[uint32]string{0x100: "metadir", 0x200: "zoned", 0x400: "zone_gaps"}

// super has the fields of the superblock that reading needs.
type super struct {
	version     uint16
	blockSize   int64
	blocks      uint64
	groups      uint32
	groupBlocks uint32
	groupBits   uint // of a block's number in its group
	inodeBits   uint // of an inode's number in its block
	inodeSize   int
	dirBlock    int64 // size of a block of a directory
	root        uint64
	logStart    uint64
	logBlocks   uint32
	filetype    bool
	label, uuid string
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: XFS "+format, append([]any{vfs.ErrDamaged}, args...)...)
}

func parseSuper(b []byte) (*super, error) {
	if string(b[:4]) != "XFSB" {
		return nil, damaged("superblock has no magic number")
	}
	version := be.Uint16(b[100:])
	s := &super{
		version: version & 0xf, blockSize: int64(be.Uint32(b[4:])), blocks: be.Uint64(b[8:]),
		logStart: be.Uint64(b[48:]), root: be.Uint64(b[56:]),
		groupBlocks: be.Uint32(b[84:]), groups: be.Uint32(b[88:]), logBlocks: be.Uint32(b[96:]),
		inodeSize: int(be.Uint16(b[104:])), inodeBits: uint(b[123]), groupBits: uint(b[124]),
		label: strings.TrimRight(string(b[108:120]), "\x00"),
		uuid:  fmt.Sprintf("%x-%x-%x-%x-%x", b[32:36], b[36:38], b[38:40], b[40:42], b[42:48]),
	}
	switch {
	case s.version == 5:
		if err := checkFeatures(be.Uint32(b[216:])); err != nil {
			return nil, err
		}
		s.filetype = be.Uint32(b[216:])&incompatFtype != 0
	case s.version == 4 && version&versionDirV2 != 0:
		s.filetype = version&versionMore != 0 && be.Uint32(b[200:])&features2Ftype != 0
	default:
		return nil, fmt.Errorf("XFS version %d: %w", s.version, vfs.ErrUnsupported)
	}
	if b[192] > 7 {
		return nil, damaged("superblock: directories have blocks of 2^%d blocks", b[192])
	}
	s.dirBlock = s.blockSize << b[192]
	return s, s.check(b[120])
}

func checkFeatures(features uint32) error {
	var names []string
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if features&bit&^incompatSupported == 0 {
			continue
		}
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("feature %#x", bit)
		}
		names = append(names, name)
	}
	if names != nil {
		return fmt.Errorf("XFS with %s: %w", strings.Join(names, ", "), vfs.ErrUnsupported)
	}
	return nil
}

func (s *super) check(blockBits byte) error {
	switch {
	case blockBits < 9 || blockBits > 16 || s.blockSize != 1<<blockBits:
		return damaged("superblock: blocks of %d bytes", s.blockSize)
	case s.inodeSize < 256 || s.inodeSize > 2048 || s.inodeSize&(s.inodeSize-1) != 0 || s.blockSize != int64(s.inodeSize)<<s.inodeBits:
		return damaged("superblock: inodes of %d bytes", s.inodeSize)
	case s.dirBlock > 64<<10:
		return damaged("superblock: directories have blocks of %d bytes", s.dirBlock)
	case s.groups == 0 || s.groupBlocks == 0 || s.groupBits > 31 || uint64(s.groupBlocks) > 1<<s.groupBits:
		return damaged("superblock: %d groups of %d blocks", s.groups, s.groupBlocks)
	case s.blocks == 0 || s.blocks > uint64(s.groups)*uint64(s.groupBlocks) || s.blocks > 1<<47:
		return damaged("superblock: %d blocks", s.blocks)
	}
	return nil
}

// linear turns a block's number, which has its group in the upper bits, into
// one that counts from the beginning.
func (s *super) linear(number uint64) (uint64, error) {
	group, in := number>>s.groupBits, number&(1<<s.groupBits-1)
	if group >= uint64(s.groups) || in >= uint64(s.groupBlocks) {
		return 0, damaged("block %#x", number)
	}
	block := group*uint64(s.groupBlocks) + in
	if block >= s.blocks {
		return 0, damaged("block %d of %d", block, s.blocks)
	}
	return block, nil
}

// locate returns where an inode lies.
func (s *super) locate(inode uint64) (int64, error) {
	block, err := s.linear(inode >> s.inodeBits)
	if err != nil {
		return 0, err
	}
	return int64(block)*s.blockSize + int64(inode&(1<<s.inodeBits-1))*int64(s.inodeSize), nil
}
