package volumes

import "github.com/cocoonstack/epochfs/internal/guestfs/vfs"

// Types of partitions that are not one.
const (
	mbrProtective = 0xee // the disk has a GPT
	mbrExtended   = 0x05
	mbrExtendedL  = 0x0f // the same, addressed by LBA
	mbrExtendedX  = 0x85 // Linux's
)

// maxLogical bounds the chain of logical partitions, which may be a ring.
const maxLogical = 128

// mbrEntry is an entry of the table, in sectors.
type mbrEntry struct {
	valid        bool
	kind         byte
	start, count int64
}

func (e mbrEntry) extended() bool {
	return e.kind == mbrExtended || e.kind == mbrExtendedL || e.kind == mbrExtendedX
}

func mbrEntries(b []byte) (entries [4]mbrEntry) {
	for k := range entries {
		e := b[446+16*k:]
		entries[k] = mbrEntry{
			valid: e[0]&0x7f == 0, kind: e[4],
			start: int64(le.Uint32(e[8:])), count: int64(le.Uint32(e[12:])),
		}
	}
	return entries
}

// mbr returns the partitions of a table, and nil if it is not one: the bytes
// may as well be a boot loader's.
func mbr(disk *vfs.Pages, entries [4]mbrEntry) (parts []partition, err error) {
	sectors := disk.Size() / sector
	for _, e := range entries {
		if !e.valid {
			return nil, nil
		}
	}
	var chain []mbrEntry
	for k, e := range entries {
		if e.kind == 0 || e.count == 0 || e.start == 0 || e.start >= sectors {
			continue
		}
		if e.extended() {
			chain = append(chain, e)
			continue
		}
		parts = append(parts, partition{k + 1, e.start * sector, e.count * sector})
	}
	number := 5
	for _, e := range chain {
		logical, err := logicalPartitions(disk, e.start, number)
		if err != nil {
			return nil, err
		}
		parts = append(parts, logical...)
		number += len(logical)
	}
	return parts, nil
}

// logicalPartitions follows the chain of tables in an extended partition. Each
// has a partition, relative to itself, and the next table, relative to the
// extended partition.
func logicalPartitions(disk *vfs.Pages, extended int64, number int) (parts []partition, err error) {
	sectors := disk.Size() / sector
	seen := map[int64]bool{}
	for at := extended; at < sectors && !seen[at] && len(seen) < maxLogical; {
		seen[at] = true
		b, err := disk.Bytes(at*sector, sector)
		if err != nil {
			return nil, err
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			break
		}
		next := int64(0)
		for _, e := range mbrEntries(b) {
			switch {
			case e.kind == 0 || e.count == 0:
			case e.extended():
				if next == 0 {
					next = extended + e.start
				}
			case at+e.start < sectors:
				parts = append(parts, partition{number, (at + e.start) * sector, e.count * sector})
				number++
			}
		}
		if next == 0 {
			break
		}
		at = next
	}
	return parts, nil
}
