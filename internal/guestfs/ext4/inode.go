package ext4

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Flags of inodes.
const (
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagInlineData = 0x10000000
	flagCasefold   = 0x40000000
)

// maxFileSize is the largest size that the format's block numbers allow:
// 2^32 blocks of 64 KiB.
const maxFileSize = 1 << 48

// inode is a parsed inode. raw is not to be changed.
type inode struct {
	number uint32
	raw    []byte
	mode   uint16
	size   int64
	flags  uint32
}

// Groups of descriptor fields: Documentation/filesystems/ext4/group_descr.rst.
const (
	groupInodeUninit = 0x1
)

// table returns the first block of a group's inode table and how many of its
// inodes may be in use.
func (f *FS) table(group uint64) (block uint64, used uint32, err error) {
	number, offset := f.descriptor(group)
	b, err := f.block(number)
	if err != nil {
		return 0, 0, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	d := b[offset : offset+f.descSize]
	block = uint64(le.Uint32(d[0x8:]))
	unused := uint32(le.Uint16(d[0x1c:]))
	if f.descSize >= 64 {
		block |= uint64(le.Uint32(d[0x28:])) << 32
		unused |= uint32(le.Uint16(d[0x32:])) << 16
	}
	if block == 0 || block >= f.blocks {
		return 0, 0, fmt.Errorf("%w: ext4 inode table of group %d at block %d", vfs.ErrDamaged, group, block)
	}
	used = f.inodesPerGroup
	if f.rocompat&(rocompatGdtCsum|rocompatMetadataCsum) != 0 {
		used -= min(used, unused)
		if le.Uint16(d[0x12:])&groupInodeUninit != 0 {
			used = 0
		}
	}
	return block, used, nil
}

// locate returns the block and the offset in it at which an inode lies.
func (f *FS) locate(number uint32) (block uint64, offset int64, err error) {
	if number == 0 || number > f.inodes {
		return 0, 0, fmt.Errorf("%w: ext4 inode %d of %d", vfs.ErrDamaged, number, f.inodes)
	}
	group := uint64(number-1) / uint64(f.inodesPerGroup)
	if group >= f.groups() {
		return 0, 0, fmt.Errorf("%w: ext4 inode %d lies in group %d of %d", vfs.ErrDamaged, number, group, f.groups())
	}
	table, _, err := f.table(group)
	if err != nil {
		return 0, 0, err
	}
	at := int64((number-1)%f.inodesPerGroup) * int64(f.inodeSize)
	return table + uint64(at/f.blockSize), at % f.blockSize, nil
}

func (f *FS) inode(number uint64) (*inode, error) {
	if number > uint64(f.inodes) {
		return nil, fmt.Errorf("%w: ext4 inode %d of %d", vfs.ErrDamaged, number, f.inodes)
	}
	block, offset, err := f.locate(uint32(number))
	if err != nil {
		return nil, err
	}
	f.prefetchNeighbours(number, block)
	b, err := f.block(block)
	if err != nil {
		return nil, err
	}
	return f.parseInode(uint32(number), b[offset:offset+int64(f.inodeSize)])
}

func (f *FS) parseInode(number uint32, raw []byte) (*inode, error) {
	i := &inode{number: number, raw: raw, mode: le.Uint16(raw), flags: le.Uint32(raw[0x20:])}
	size := uint64(le.Uint32(raw[0x4:]))
	if i.kind() == vfs.Regular || f.incompat&incompatLargedir != 0 {
		size |= uint64(le.Uint32(raw[0x6c:])) << 32
	}
	if size > maxFileSize {
		return nil, fmt.Errorf("%w: ext4 inode %d has %d bytes", vfs.ErrDamaged, number, size)
	}
	i.size = int64(size)
	return i, nil
}

// existing returns an inode that is in use and of one of the types.
func (f *FS) existing(number uint64, types ...vfs.Type) (*inode, error) {
	i, err := f.inode(number)
	if err != nil {
		return nil, err
	}
	if i.mode == 0 {
		return nil, fmt.Errorf("%w: ext4 inode %d is not in use", vfs.ErrDamaged, number)
	}
	for _, t := range types {
		if i.kind() == t {
			return i, nil
		}
	}
	if len(types) > 0 {
		return nil, fmt.Errorf("inode %d: %w", number, fs.ErrInvalid)
	}
	return i, nil
}

func (i *inode) kind() vfs.Type {
	switch i.mode & 0xf000 {
	case 0x1000:
		return vfs.FIFO
	case 0x2000:
		return vfs.CharDevice
	case 0x4000:
		return vfs.Directory
	case 0x6000:
		return vfs.BlockDevice
	case 0x8000:
		return vfs.Regular
	case 0xa000:
		return vfs.Symlink
	case 0xc000:
		return vfs.Socket
	}
	return vfs.Unknown
}

// extra is the size of the fields behind the first 128 bytes.
func (i *inode) extra() int {
	if len(i.raw) < 128+4 {
		return 0
	}
	n := int(le.Uint16(i.raw[0x80:]))
	if n > len(i.raw)-128 {
		return 0
	}
	return n
}

// time reads a time's seconds and, where the inode has them, its two bits of
// epoch and 30 of nanoseconds.
func (i *inode) time(seconds, extra int) time.Time {
	s, ns := int64(int32(le.Uint32(i.raw[seconds:]))), int64(0)
	if extra+4 <= 128+i.extra() {
		e := le.Uint32(i.raw[extra:])
		s += int64(e&3) << 32
		ns = int64(e >> 2)
	}
	return time.Unix(s, ns)
}

// Stat returns the metadata of an inode.
func (f *FS) Stat(number uint64) (vfs.Info, error) {
	i, err := f.existing(number)
	if err != nil {
		return vfs.Info{}, err
	}
	r := i.raw
	info := vfs.Info{
		Inode: number, Type: i.kind(), Mode: i.mode & 0o7777, Links: uint32(le.Uint16(r[0x1a:])),
		UID:  uint32(le.Uint16(r[0x2:])) | uint32(le.Uint16(r[0x78:]))<<16,
		GID:  uint32(le.Uint16(r[0x18:])) | uint32(le.Uint16(r[0x7a:]))<<16,
		Size: i.size, Blocks: f.blocksOf(i),
		Accessed: i.time(0x8, 0x8c), Changed: i.time(0xc, 0x84), Modified: i.time(0x10, 0x88),
	}
	if info.Type == vfs.CharDevice || info.Type == vfs.BlockDevice {
		info.Major, info.Minor = device(r[0x28:])
	}
	return info, nil
}

// blocksOf is the size on disk, in units of 512 bytes.
func (f *FS) blocksOf(i *inode) int64 {
	n := int64(le.Uint32(i.raw[0x1c:]))
	if i.flags&flagInlineData != 0 && i.kind() == vfs.Regular {
		return n + (i.size+511)/512 // as the kernel's stat
	}
	if f.rocompat&rocompatHugeFile == 0 {
		return n
	}
	n |= int64(le.Uint16(i.raw[0x74:])) << 32
	if i.flags&flagHugeFile != 0 {
		n *= f.blockSize / 512
	}
	return n
}

// device decodes a device's number: 16 bits in the first word, or 32 in the
// second.
func device(b []byte) (major, minor uint32) {
	if n := le.Uint32(b); n != 0 {
		return n >> 8 & 0xff, n & 0xff
	}
	n := le.Uint32(b[4:])
	return n >> 8 & 0xfff, n&0xff | n>>12&0xfff00
}
