// Package qcow2 reads the disk in a qcow2 file.
//
// The format is that of docs/interop/qcow2.txt in qemu. The package opens no
// files: the caller provides the one with the clusters and, by the name in its
// header, the backing file. Internal snapshots are not shown. Encrypted files
// and those with an external data file are refused.
//
// Memory: 16 MiB of pages for the two levels of tables, and 8 MiB at most of
// decompressed clusters.
package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var be = binary.BigEndian

const magic = 0x514649fb // "QFI\xfb"

// Bounds on the header's fields: qemu's on the cluster's size and the backing
// file's name, ours on the disk's size.
const (
	minClusterBits = 9
	maxClusterBits = 21
	maxBackingName = 1023
	maxSize        = 1 << 56
)

// Incompatible features.
const (
	featureDirty       = 1 << 0 // concerns reference counts only
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
	featuresKnown      = featureDirty | featureCorrupt | featureDataFile | featureCompression | featureExtendedL2
)

// Image is the disk. It is safe for concurrent use.
type Image struct {
	file  vfs.Image
	pages *vfs.Pages

	size        int64
	clusterBits uint
	l1          int64 // where the first level lies
	extended    bool  // entries of the second level have bitmaps of subclusters
	zstd        bool
	version     uint32

	backing string
	base    vfs.Image

	mu           sync.Mutex
	decompressed []cluster
	decoder      decoder
}

// Open reads the header. It calls base, if it is not nil, with the name of
// the backing file in the header.
func Open(file vfs.Image, base func(name string) (vfs.Image, error)) (*Image, error) {
	q := &Image{file: file, pages: vfs.NewPages(file)}
	if err := q.readHeader(); err != nil {
		return nil, err
	}
	if q.backing != "" && base != nil {
		var err error
		if q.base, err = base(q.backing); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// Size is the size of the disk.
func (q *Image) Size() int64 { return q.size }

// Backing returns the name of the backing file in the header, or "".
func (q *Image) Backing() string { return q.backing }

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: qcow2 "+format, append([]any{vfs.ErrDamaged}, args...)...)
}

func (q *Image) readHeader() error {
	if q.file.Size() < 72 {
		return damaged("file of %d bytes", q.file.Size())
	}
	h, err := q.pages.Bytes(0, int(min(q.file.Size(), vfs.Reach)))
	if err != nil {
		return fmt.Errorf("qcow2 header: %w", err)
	}
	q.version = be.Uint32(h[4:])
	clusterBits := be.Uint32(h[20:])
	size := be.Uint64(h[24:])
	q.l1 = int64(be.Uint64(h[40:]))
	switch {
	case be.Uint32(h) != magic:
		return damaged("file without its magic number")
	case q.version != 2 && q.version != 3:
		return fmt.Errorf("qcow2 version %d: %w", q.version, vfs.ErrUnsupported)
	case clusterBits < minClusterBits || clusterBits > maxClusterBits:
		return damaged("clusters of 2^%d bytes", clusterBits)
	case size > maxSize:
		return damaged("disk of %d bytes", size)
	case be.Uint32(h[32:]) != 0:
		return fmt.Errorf("encrypted qcow2: %w", vfs.ErrUnsupported)
	}
	q.clusterBits, q.size = uint(clusterBits), int64(size)
	if q.version == 3 {
		if err := q.readFeatures(h); err != nil {
			return err
		}
	}
	if err := q.readBacking(h); err != nil {
		return err
	}
	perL1 := q.clusters() << q.clusterBits
	need := (q.size + perL1 - 1) / perL1
	if have := int64(be.Uint32(h[36:])); need > have {
		return damaged("first level has %d entries, and the disk needs %d", have, need)
	}
	if q.l1 < 0 || q.l1 > q.file.Size() || need*8 > q.file.Size()-q.l1 {
		return damaged("first level lies beyond the end")
	}
	return nil
}

func (q *Image) readFeatures(h []byte) error {
	if len(h) < 104 {
		return damaged("header of %d bytes", len(h))
	}
	features, length := be.Uint64(h[72:]), be.Uint32(h[100:])
	switch {
	case features&featureDataFile != 0:
		return fmt.Errorf("qcow2 with an external data file: %w", vfs.ErrUnsupported)
	case features&^featuresKnown != 0:
		return fmt.Errorf("qcow2 with the unknown features %#x: %w", features&^featuresKnown, vfs.ErrUnsupported)
	}
	q.extended = features&featureExtendedL2 != 0
	if q.extended && q.clusterBits < 14 {
		return damaged("subclusters of less than 512 bytes")
	}
	if features&featureCompression == 0 {
		return nil
	}
	if length < 105 || len(h) < 105 {
		return damaged("header without its compression type")
	}
	switch h[104] {
	case 0:
	case 1:
		q.zstd = true
	default:
		return fmt.Errorf("qcow2 with compression type %d: %w", h[104], vfs.ErrUnsupported)
	}
	return nil
}

func (q *Image) readBacking(h []byte) error {
	at, length := be.Uint64(h[8:]), be.Uint32(h[16:])
	if at == 0 || length == 0 {
		return nil
	}
	if length > maxBackingName || at > uint64(len(h)) || uint64(length) > uint64(len(h))-at {
		return damaged("backing file's name of %d bytes at %d", length, at)
	}
	q.backing = string(h[at : at+uint64(length)])
	return nil
}

// entrySize is the size of an entry of the second level.
func (q *Image) entrySize() int64 {
	if q.extended {
		return 16
	}
	return 8
}

// clusters is how many clusters a table of the second level has.
func (q *Image) clusters() int64 { return 1 << q.clusterBits / q.entrySize() }

// unit returns the size that one table entry maps: a cluster or a
// subcluster.
func (q *Image) unit() int64 {
	if q.extended {
		return 1 << q.clusterBits / 32
	}
	return 1 << q.clusterBits
}

// kind is where bytes of the disk come from.
type kind uint8

const (
	unallocated kind = iota // from the backing file
	zero
	stored
	compressed
)

// stretch is a part of the disk from one place. at is its offset in the file,
// or the entry of a compressed cluster.
type stretch struct {
	kind   kind
	at     uint64
	length int64
}

// offsetBits are the bits of an entry that are a cluster's offset.
const offsetBits = 0x00fffffffffffe00

// table returns the offset of the second-level table for an offset of the
// disk, or 0.
func (q *Image) table(off int64) (int64, error) {
	b, err := q.pages.Bytes(q.l1+off>>q.clusterBits/q.clusters()*8, 8)
	if err != nil {
		return 0, err
	}
	at := int64(be.Uint64(b) & offsetBits)
	if at&(1<<q.clusterBits-1) != 0 {
		return 0, damaged("table at %d is not at the beginning of a cluster", at)
	}
	return at, nil
}

// entry decodes what a table has for one unit of the disk.
func (q *Image) entry(table, off int64) (stretch, error) {
	b, err := q.pages.Bytes(table+off>>q.clusterBits%q.clusters()*q.entrySize(), int(q.entrySize()))
	if err != nil {
		return stretch{}, err
	}
	in := off & (1<<q.clusterBits - 1)
	e := be.Uint64(b)
	at := e & offsetBits
	switch {
	case e>>62&1 != 0:
		return stretch{compressed, e, 1<<q.clusterBits - in}, nil
	case at&(1<<q.clusterBits-1) != 0:
		return stretch{}, damaged("cluster at %d is not at the beginning of one", at)
	}
	s := stretch{stored, at + uint64(in), q.unit() - in%q.unit()}
	if q.extended {
		bitmap, sub := be.Uint64(b[8:]), in/q.unit()
		switch {
		case bitmap>>(32+sub)&1 != 0:
			s.kind = zero
		case bitmap>>sub&1 == 0:
			s.kind = unallocated
		}
	} else if q.version >= 3 && e&1 != 0 {
		s.kind = zero
	} else if at == 0 {
		s.kind = unallocated
	}
	if s.kind == stored && at == 0 {
		return stretch{}, damaged("cluster lies in the header")
	}
	return s, nil
}

// locate returns where the disk's bytes from off on are, at most limit of
// them; a stretch ends with a table at the latest.
func (q *Image) locate(off, limit int64) (stretch, error) {
	perTable := q.clusters() << q.clusterBits
	limit = min(limit, perTable-off%perTable)
	table, err := q.table(off)
	if err != nil {
		return stretch{}, err
	}
	if table == 0 {
		return stretch{unallocated, 0, limit}, nil
	}
	s, err := q.entry(table, off)
	for err == nil && s.length < limit && s.kind != compressed {
		next, nextErr := q.entry(table, off+s.length)
		if nextErr != nil || next.kind != s.kind || s.kind == stored && next.at != s.at+uint64(s.length) {
			break
		}
		s.length += next.length
	}
	s.length = min(s.length, limit)
	return s, err
}
