// Package xfs reads XFS, versions 4 and 5.
//
// The layout is that of "XFS Algorithms & Data Structures" and of the kernel's
// fs/xfs/libxfs. The log is not replayed: it holds changes of parts of blocks
// and intents, which only the driver can finish. Describe reports whether it
// is empty. Realtime devices are not read.
//
// Memory: 16 MiB of pages, one directory's numbers of inodes, and 1 MiB of one
// file's extended attributes.
package xfs

import (
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// FS is an open file system.
type FS struct {
	*super
	img        vfs.Image
	pages      *vfs.Pages
	neighbours vfs.Neighbours
	state      func() string
}

var (
	_ vfs.FS             = (*FS)(nil)
	_ vfs.TreePrefetcher = (*FS)(nil)
)

// Open reads the superblock.
func Open(img vfs.Image) (*FS, error) {
	f := &FS{img: img, pages: vfs.NewPages(img)}
	b, err := f.pages.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("XFS superblock: %w", err)
	}
	if f.super, err = parseSuper(b); err != nil {
		return nil, err
	}
	f.state = sync.OnceValue(f.logState)
	return f, nil
}

// Describe returns the superblock's answers, and looks for the end of the log,
// which takes some reads.
func (f *FS) Describe() vfs.Description {
	return vfs.Description{Type: "xfs", Label: f.label, UUID: f.uuid, Size: int64(f.blocks) * f.blockSize, State: f.state()}
}

// Root returns the root's inode.
func (f *FS) Root() uint64 { return f.root }

// Flags of inodes.
const (
	flagRealtime  = 0x1
	flags2Bigtime = 0x8
	flags2Nrext64 = 0x10
)

// Formats of a fork: where its contents lie.
const (
	formatDevice = iota
	formatLocal
	formatExtents
	formatTree
)

// inode is a parsed inode. raw is not to be changed.
type inode struct {
	number     uint64
	raw        []byte
	mode       uint16
	size       int64
	data, attr fork
	flags      uint16
	flags2     uint64
}

// fork is one of the two contents of an inode: data and attributes.
type fork struct {
	format  byte
	bytes   []byte
	extents uint64
}

func (f *FS) inode(number uint64) (*inode, error) {
	at, err := f.locate(number)
	if err != nil {
		return nil, err
	}
	if !f.pages.Has(at) {
		f.prefetchInodes(f.neighbours.Next(number))
	}
	raw, err := f.pages.Bytes(at, f.inodeSize)
	if err != nil {
		return nil, err
	}
	return f.parseInode(number, raw)
}

func (f *FS) parseInode(number uint64, raw []byte) (*inode, error) {
	i := &inode{number: number, raw: raw, mode: be.Uint16(raw[2:]), flags: be.Uint16(raw[90:])}
	version, start := raw[4], 100
	if string(raw[:2]) != "IN" || version < 1 || version > 3 {
		return nil, damaged("inode %d has no magic number", number)
	}
	if version == 3 {
		start, i.flags2 = 176, be.Uint64(raw[120:])
	}
	size := be.Uint64(raw[56:])
	if size > 1<<62 {
		return nil, damaged("inode %d has %d bytes", number, size)
	}
	i.size = int64(size)
	split := len(raw)
	if offset := int(raw[82]) * 8; offset != 0 {
		if split = start + offset; split >= len(raw) {
			return nil, damaged("inode %d: attributes begin at %d", number, split)
		}
		i.attr = fork{format: raw[83], bytes: raw[split:], extents: uint64(be.Uint16(raw[80:]))}
	}
	i.data = fork{format: raw[5], bytes: raw[start:split], extents: uint64(be.Uint32(raw[76:]))}
	if i.flags2&flags2Nrext64 != 0 {
		i.data.extents, i.attr.extents = be.Uint64(raw[24:]), uint64(be.Uint32(raw[76:]))
	}
	return i, nil
}

// existing returns an inode that is in use and of one of the types.
func (f *FS) existing(number uint64, types ...vfs.Type) (*inode, error) {
	i, err := f.inode(number)
	if err != nil {
		return nil, err
	}
	if i.mode == 0 {
		return nil, damaged("inode %d is not in use", number)
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

// time decodes seconds and nanoseconds, or nanoseconds since 1901.
func (i *inode) time(at int) time.Time {
	if i.flags2&flags2Bigtime != 0 {
		t := be.Uint64(i.raw[at:])
		return time.Unix(int64(t/1e9)-1<<31, int64(t%1e9))
	}
	return time.Unix(int64(int32(be.Uint32(i.raw[at:]))), int64(be.Uint32(i.raw[at+4:])))
}

// Stat returns the metadata of an inode.
func (f *FS) Stat(number uint64) (vfs.Info, error) {
	i, err := f.existing(number)
	if err != nil {
		return vfs.Info{}, err
	}
	r := i.raw
	info := vfs.Info{
		Inode: number, Type: i.kind(), Mode: i.mode & 0o7777, Links: be.Uint32(r[16:]),
		UID: be.Uint32(r[8:]), GID: be.Uint32(r[12:]), Size: i.size,
		Blocks:   int64(be.Uint64(r[64:])&(1<<48-1)) * (f.blockSize / 512),
		Accessed: i.time(32), Modified: i.time(40), Changed: i.time(48),
	}
	if r[4] == 1 {
		info.Links = uint32(be.Uint16(r[6:]))
	}
	if info.Type == vfs.CharDevice || info.Type == vfs.BlockDevice {
		// 14 bits of major, 18 of minor number.
		n := be.Uint32(i.data.bytes)
		info.Major, info.Minor = n>>18, n&(1<<18-1)
	}
	return info, nil
}

// maxLink is the longest target of a symbolic link (XFS_SYMLINK_MAXLEN).
const maxLink = 1024

// Readlink returns a link's target, from the inode or from blocks, which have
// headers since version 5.
func (f *FS) Readlink(number uint64) (string, error) {
	i, err := f.existing(number, vfs.Symlink)
	if err != nil {
		return "", err
	}
	switch {
	case i.size > maxLink:
		return "", damaged("inode %d: a link's target of %d bytes", number, i.size)
	case i.data.format == formatLocal:
		if i.size > int64(len(i.data.bytes)) {
			return "", damaged("inode %d: a link's target of %d bytes", number, i.size)
		}
		return string(i.data.bytes[:i.size]), nil
	}
	return f.remoteLink(i)
}

// header is the size of the header of a block of a link or of an attribute's
// value, since version 5.
const header = 56

// remoteLink reads a link's target from blocks. Those that lie side by side
// have one header.
func (f *FS) remoteLink(i *inode) (string, error) {
	var target []byte
	end := f.blocksIn(maxLink + header*maxLink/256)
	for block := int64(0); int64(len(target)) < i.size; {
		r, err := f.mapped(i, &i.data, block, end)
		if err != nil {
			return "", err
		}
		if r.hole {
			return "", damaged("inode %d: a link's target has a hole", i.number)
		}
		b, err := f.pages.Bytes(int64(r.physical)*f.blockSize, int(r.count*f.blockSize))
		if err != nil {
			return "", err
		}
		if f.version == 5 {
			if string(b[:4]) != "XSLM" {
				return "", damaged("inode %d: a link's target has no magic number", i.number)
			}
			b = b[header:]
		}
		target = append(target, b[:min(int64(len(b)), i.size-int64(len(target)))]...)
		block += r.count
	}
	return string(target), nil
}

// remote reads an attribute's value of n bytes that fills blocks, each of them
// behind a header since version 5.
func (f *FS) remote(i *inode, block int64, n int) ([]byte, error) {
	var value []byte
	for ; len(value) < n; block++ {
		r, err := f.mapped(i, &i.attr, block, block+1)
		if err != nil {
			return nil, err
		}
		if r.hole {
			return nil, damaged("inode %d: a value has a hole", i.number)
		}
		b, err := f.pages.Bytes(int64(r.physical)*f.blockSize, int(f.blockSize))
		if err != nil {
			return nil, err
		}
		if f.version == 5 {
			if string(b[:4]) != "XARM" {
				return nil, damaged("inode %d: a value has no magic number", i.number)
			}
			b = b[header:]
		}
		value = append(value, b[:min(len(b), n-len(value))]...)
	}
	return value, nil
}
