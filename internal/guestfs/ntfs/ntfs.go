// Package ntfs reads NTFS.
//
// The layout is that of the Linux-NTFS project's documentation and of the
// kernel's fs/ntfs3/ntfs.h. Files are read with their holes and decompressed;
// encrypted ones, and those that Windows keeps in another form (WOF, dedup,
// cloud files), are refused by name instead of being shown as zeros. Alternate
// streams are not shown, nor are the file system's own files. $LogFile is not
// replayed; Describe reports whether it is empty.
//
// Memory: 16 MiB of pages, 24 bytes for each piece of the MFT and of the file
// that is read (at most maxRuns), 2 MiB of an attribute list or a bitmap, and
// one directory's numbers of files.
package ntfs

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"sync"
	"time"
	"unicode/utf16"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var le = binary.LittleEndian

// Numbers of the file system's own files, which come before all others.
const (
	recordMFT    = 0
	recordLog    = 2
	recordVolume = 3
	recordRoot   = 5
	firstUser    = 16
)

// FS is an open file system.
type FS struct {
	img        vfs.Image
	pages      *vfs.Pages
	neighbours vfs.Neighbours

	clusterSize, recordSize int64
	clusters                int64
	serial                  uint64
	mft                     *stream
	describe                func() vfs.Description

	mu sync.Mutex
	// What was read last: reading a file asks for it again and again.
	last       *unit
	lastRecord *record
	lastFile   *record
	lastStream *stream
}

var _ vfs.FS = (*FS)(nil)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: NTFS "+format, append([]any{vfs.ErrDamaged}, args...)...)
}

// Open reads the boot sector and finds the MFT, in which all else is found.
func Open(img vfs.Image) (*FS, error) {
	f := &FS{img: img, pages: vfs.NewPages(img)}
	b, err := f.pages.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("NTFS boot sector: %w", err)
	}
	first, err := f.parseBoot(b)
	if err != nil {
		return nil, err
	}
	if err := f.openMFT(first); err != nil {
		return nil, fmt.Errorf("$MFT: %w", err)
	}
	f.describe = sync.OnceValue(f.readDescription)
	return f, nil
}

// parseBoot returns where the MFT begins.
func (f *FS) parseBoot(b []byte) (first int64, err error) {
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	if perCluster > 0x80 { // a power of two, negated
		perCluster = 1 << min(16, 256-perCluster)
	}
	if string(b[3:11]) != "NTFS    " || sector < 256 || sector > 4096 || sector&(sector-1) != 0 ||
		perCluster == 0 || perCluster&(perCluster-1) != 0 {
		return 0, damaged("boot sector: %d bytes a sector, %d sectors a cluster", sector, perCluster)
	}
	f.clusterSize, f.serial = sector*perCluster, le.Uint64(b[72:])
	sectors := le.Uint64(b[40:])
	if f.clusterSize > 2<<20 || sectors == 0 || sectors > 1<<50 {
		return 0, damaged("boot sector: %d sectors, clusters of %d bytes", sectors, f.clusterSize)
	}
	f.clusters = int64(sectors) / perCluster
	if n := int64(int8(b[64])); n > 0 {
		f.recordSize = n * f.clusterSize
	} else {
		f.recordSize = 1 << min(20, -n)
	}
	if f.recordSize < 512 || f.recordSize > 16<<10 || f.recordSize&(f.recordSize-1) != 0 {
		return 0, damaged("boot sector: records of %d bytes", f.recordSize)
	}
	at := le.Uint64(b[48:])
	if at >= uint64(f.clusters) {
		return 0, damaged("boot sector: MFT at cluster %d of %d", at, f.clusters)
	}
	return int64(at) * f.clusterSize, nil
}

// openMFT reads the MFT's own record. If it is in so many pieces that they do
// not fit, the others are in records that the first pieces hold.
func (f *FS) openMFT(at int64) error {
	b, err := f.pages.Bytes(at, int(f.recordSize))
	if err != nil {
		return err
	}
	r, err := parseRecord(b, recordMFT)
	if err != nil {
		return err
	}
	f.mft = &stream{}
	for _, a := range r.attributes {
		if a.kind == typeData && a.name == "" && !a.resident {
			if err := f.mft.add(f, a); err != nil {
				return err
			}
		}
	}
	if err := f.extend(r); err != nil {
		return err
	}
	whole, err := f.stream(r, typeData, "")
	if err != nil {
		return err
	}
	f.mft = whole
	return nil
}

// Describe returns the boot sector's answers and those of $Volume and
// $LogFile, which take some reads.
func (f *FS) Describe() vfs.Description { return f.describe() }

func (f *FS) readDescription() vfs.Description {
	d := vfs.Description{Type: "ntfs", UUID: fmt.Sprintf("%016X", f.serial), Size: f.clusters * f.clusterSize,
		State: "journal not replayed: may be older than the snapshot"}
	if r, err := f.record(recordVolume); err == nil {
		for _, a := range r.attributes {
			if a.kind == typeVolumeName && a.resident {
				d.Label = text(a.value)
			}
		}
	}
	if f.logIsEmpty() {
		d.State = "clean"
	}
	return d
}

// logIsEmpty reports whether the log is unused: its newest restart area is
// that of an unmount, or it was never written.
func (f *FS) logIsEmpty() bool {
	r, err := f.record(recordLog)
	if err != nil {
		return false
	}
	log, err := f.stream(r, typeData, "")
	if err != nil {
		return false
	}
	const page, flagClean, nobody = 4096, 2, 0xffff
	newest, empty := uint64(0), false
	for n := range int64(2) {
		b := make([]byte, page)
		if _, err := f.readStream(log, b, n*page, nil); err != nil {
			return false
		}
		if le.Uint32(b) == 0xffffffff {
			empty = empty || newest == 0
			continue
		}
		area := int(le.Uint16(b[24:]))
		if fixup(b) != nil || string(b[:4]) != "RSTR" || area+16 > page {
			continue
		}
		a := b[area:]
		if lsn := le.Uint64(a); lsn >= newest {
			newest = lsn
			empty = le.Uint16(a[12:]) == nobody || le.Uint16(a[14:])&flagClean != 0
		}
	}
	return empty
}

// Root returns the root's record.
func (f *FS) Root() uint64 { return recordRoot }

// Attributes of files, as DOS had them.
const (
	fileReadOnly = 0x1
	fileReparse  = 0x400
)

// filetime converts 100 nanoseconds since 1601.
func filetime(n uint64) time.Time {
	const epoch = 11644473600
	return time.Unix(int64(n/1e7)-epoch, int64(n%1e7)*100)
}

// Stat returns the metadata in the file's record. Permissions are those of a
// mount without options, because NTFS has access control lists instead.
func (f *FS) Stat(inode uint64) (vfs.Info, error) {
	r, err := f.existing(inode)
	if err != nil {
		return vfs.Info{}, err
	}
	info := vfs.Info{Inode: inode, Type: vfs.Regular, Mode: 0o755}
	for _, a := range r.attributes {
		switch {
		case a.kind == typeStandard && a.resident && len(a.value) >= 36:
			info.Modified, info.Changed, info.Accessed = filetime(le.Uint64(a.value[8:])), filetime(le.Uint64(a.value[16:])), filetime(le.Uint64(a.value[24:]))
			if le.Uint32(a.value[32:])&fileReadOnly != 0 {
				info.Mode = 0o555
			}
		case a.kind == typeFileName && a.resident && len(a.value) >= 66 && a.value[65] != nameDOS:
			info.Links++
		case a.kind == typeData && a.name == "" && !r.directory && (a.resident || a.first == 0):
			info.Size, info.Blocks = a.size(), a.allocated/512
		case a.kind == typeIndexAllocation && a.name == indexNames && r.directory && a.first == 0:
			info.Size, info.Blocks = a.size(), a.allocated/512
		}
	}
	if r.directory {
		info.Type = vfs.Directory
	}
	return info, f.special(r, &info)
}

// Xattrs returns none.
func (f *FS) Xattrs(uint64) (map[string][]byte, error) { return nil, nil }

// text decodes UTF-16.
func text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for k := range units {
		units[k] = le.Uint16(b[2*k:])
	}
	return string(utf16.Decode(units))
}

// file returns a regular file and its contents.
func (f *FS) file(inode uint64) (*record, *stream, error) {
	r, err := f.existing(inode)
	if err != nil {
		return nil, nil, err
	}
	f.mu.Lock()
	if f.lastFile == r {
		defer f.mu.Unlock()
		return r, f.lastStream, nil
	}
	f.mu.Unlock()
	info := vfs.Info{Type: vfs.Regular}
	if err := f.special(r, &info); err != nil {
		return nil, nil, err
	}
	if r.directory || info.Type != vfs.Regular {
		return nil, nil, fmt.Errorf("inode %d: %w", inode, fs.ErrInvalid)
	}
	if tag, _, ok := r.reparse(f); ok {
		return nil, nil, fmt.Errorf("a file that Windows keeps in another form (reparse tag %#x): %w", tag, vfs.ErrUnsupported)
	}
	s, err := f.stream(r, typeData, "")
	if err != nil {
		return nil, nil, fmt.Errorf("inode %d: %w", inode, err)
	}
	if s.flags&flagEncrypted != 0 {
		return nil, nil, fmt.Errorf("inode %d is encrypted: %w", inode, vfs.ErrUnsupported)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastFile, f.lastStream = r, s
	return r, s, nil
}

// ReadAt reads a file.
func (f *FS) ReadAt(inode uint64, p []byte, off int64) (int, error) {
	_, s, err := f.file(inode)
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fs.ErrInvalid
	}
	return f.readStream(s, p, off, &inode)
}

// Extents visits the ranges of a file that have data.
func (f *FS) Extents(inode uint64, visit func(vfs.Extent) error) error {
	_, s, err := f.file(inode)
	if err != nil {
		return err
	}
	return f.extents(s, visit)
}
