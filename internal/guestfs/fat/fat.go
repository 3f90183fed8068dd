// Package fat reads FAT12, FAT16 and FAT32 with long names.
//
// The layout is that of Microsoft's "FAT32 File System Specification" and of
// the kernel's fs/fat. FAT has no inodes: a file's number is the place of its
// entry, in units of 32 bytes from the volume's beginning; the root's is 1.
//
// Memory: 16 MiB of pages, and for each of maxChains files that were read last
// 16 bytes for each piece, of which there are at most maxRuns.
package fat

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"sync"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var le = binary.LittleEndian

// rootInode is the number of the root, which has no entry.
const rootInode = 1

// Bounds: of a directory's size (65,536 entries), of the pieces of a file and
// of the files whose pieces are kept.
const (
	maxDirectory = 65536 * entrySize
	maxRuns      = 1 << 19
	maxChains    = 4
)

// FS is an open file system.
type FS struct {
	img   vfs.Image
	pages *vfs.Pages

	bits         int // of an entry of the table: 12, 16 or 32
	clusterSize  int64
	clusters     uint32 // the last one's number is clusters+1
	table        int64  // where the table lies
	data         int64  // where cluster 2 lies
	root         int64  // where the root lies, if that is not a chain
	rootSize     int64
	rootCluster  uint32
	size         int64
	label, uuid  string
	dirty        bool
	hasRootChain bool

	mu     sync.Mutex
	chains []chain
}

var _ vfs.FS = (*FS)(nil)

// Open reads the boot sector.
func Open(img vfs.Image) (*FS, error) {
	f := &FS{img: img, pages: vfs.NewPages(img)}
	b, err := f.pages.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("FAT boot sector: %w", err)
	}
	if err := f.parseBoot(b); err != nil {
		return nil, err
	}
	return f, f.readLabel()
}

func (f *FS) parseBoot(b []byte) error {
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables := int64(le.Uint16(b[14:])), int64(b[16])
	rootEntries, sectors := int64(le.Uint16(b[17:])), int64(le.Uint16(b[19:]))
	tableSectors := int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	f.hasRootChain = tableSectors == 0
	serial := b[39:43]
	if f.hasRootChain {
		tableSectors = int64(le.Uint32(b[36:]))
		f.rootCluster = le.Uint32(b[44:])
		serial = b[67:71]
		f.dirty = b[65]&1 != 0
	} else {
		f.dirty = b[37]&1 != 0
	}
	f.uuid = fmt.Sprintf("%02X%02X-%02X%02X", serial[3], serial[2], serial[1], serial[0])
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || perCluster == 0 || perCluster&(perCluster-1) != 0 ||
		reserved == 0 || tables == 0 || tableSectors == 0 {
		return fmt.Errorf("%w: FAT boot sector: %d bytes a sector, %d sectors a cluster, %d tables of %d sectors",
			vfs.ErrDamaged, sector, perCluster, tables, tableSectors)
	}
	rootSectors := (rootEntries*entrySize + sector - 1) / sector
	first := reserved + tables*tableSectors + rootSectors
	f.clusterSize = sector * perCluster
	f.table, f.root, f.rootSize = reserved*sector, (first-rootSectors)*sector, rootEntries*entrySize
	f.data, f.size = first*sector, sectors*sector
	if first >= sectors {
		return fmt.Errorf("%w: FAT boot sector: data begin at sector %d of %d", vfs.ErrDamaged, first, sectors)
	}
	clusters := (sectors - first) / perCluster
	switch {
	case f.hasRootChain:
		f.bits = 32
		clusters = min(clusters, tableSectors*sector/4-2, 0x0ffffff4)
	case clusters > 4084:
		f.bits = 16
		clusters = min(clusters, tableSectors*sector/2-2)
	default:
		f.bits = 12
		clusters = min(clusters, tableSectors*sector*2/3-2)
	}
	if clusters <= 0 {
		return fmt.Errorf("%w: FAT boot sector: no clusters", vfs.ErrDamaged)
	}
	f.clusters = uint32(clusters)
	return nil
}

// readLabel prefers the root's entry to the boot sector, as blkid does.
func (f *FS) readLabel() error {
	err := f.entries(rootInode, func(e *entry) error {
		if e.attributes&(attrVolume|attrDirectory) == attrVolume {
			f.label = e.short
			return errFound
		}
		return nil
	})
	if err == errFound {
		return nil
	}
	return err
}

// Describe returns the boot sector's answers.
func (f *FS) Describe() vfs.Description {
	state := "clean"
	if f.dirty {
		state = "not unmounted, and without a journal: may contradict itself"
	}
	return vfs.Description{Type: "vfat", Label: f.label, UUID: f.uuid, Size: f.size, State: state}
}

// Root returns the root's number.
func (f *FS) Root() uint64 { return rootInode }

// Stat returns the metadata in a file's entry. Permissions are those of a
// mount without options.
func (f *FS) Stat(inode uint64) (vfs.Info, error) {
	if inode == rootInode {
		info := vfs.Info{Inode: inode, Type: vfs.Directory, Mode: 0o755, Links: 1, Size: f.rootSize}
		if f.hasRootChain {
			c, err := f.chain(f.rootCluster, maxDirectory)
			if err != nil {
				return vfs.Info{}, err
			}
			info.Size = c.length
		}
		info.Blocks = info.Size / 512
		return info, nil
	}
	e, err := f.entry(inode)
	if err != nil {
		return vfs.Info{}, err
	}
	info := vfs.Info{
		Inode: inode, Type: e.kind(), Mode: 0o755, Links: 1, Size: e.size,
		Modified: e.modified, Changed: e.modified, Accessed: e.accessed,
	}
	if e.attributes&attrReadOnly != 0 {
		info.Mode = 0o555
	}
	if info.Type == vfs.Directory {
		c, err := f.chain(e.cluster, maxDirectory)
		if err != nil {
			return vfs.Info{}, err
		}
		info.Size = c.length
	}
	info.Blocks = (info.Size + f.clusterSize - 1) / f.clusterSize * (f.clusterSize / 512)
	return info, nil
}

// file returns the entry of a regular file.
func (f *FS) file(inode uint64) (*entry, error) {
	if inode == rootInode {
		return nil, fmt.Errorf("the root: %w", fs.ErrInvalid)
	}
	e, err := f.entry(inode)
	if err != nil {
		return nil, err
	}
	if e.kind() != vfs.Regular {
		return nil, fmt.Errorf("inode %d: %w", inode, fs.ErrInvalid)
	}
	return e, nil
}

// ReadAt reads a file.
func (f *FS) ReadAt(inode uint64, p []byte, off int64) (int, error) {
	e, err := f.file(inode)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	n, end := vfs.Clip(p, off, e.size)
	if n == 0 {
		return 0, end
	}
	c, err := f.chain(e.cluster, e.size)
	if err != nil {
		return 0, err
	}
	if off+int64(n) > c.length {
		return 0, fmt.Errorf("%w: FAT file %d has %d bytes in clusters of %d", vfs.ErrDamaged, inode, c.length, e.size)
	}
	if err := f.read(c, p[:n], off); err != nil {
		return 0, err
	}
	return n, end
}

// Extents visits the whole file: FAT has no holes.
func (f *FS) Extents(inode uint64, visit func(vfs.Extent) error) error {
	e, err := f.file(inode)
	if err != nil || e.size == 0 {
		return err
	}
	return visit(vfs.Extent{Length: e.size})
}

// Readlink always fails: FAT has no links.
func (f *FS) Readlink(uint64) (string, error) { return "", fs.ErrInvalid }

// Xattrs returns none.
func (f *FS) Xattrs(uint64) (map[string][]byte, error) { return nil, nil }
