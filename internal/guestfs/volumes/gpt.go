package volumes

import (
	"fmt"
	"hash/crc32"
	"math"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// maxGPT bounds the entries of a table; partitioning tools make 128.
const maxGPT = 1024

// gpt reads the table at the beginning of the disk, or the copy at its end if
// that one is damaged.
func gpt(disk *vfs.Pages) ([]partition, error) {
	for _, size := range []int64{512, 4096} {
		for _, at := range []int64{size, disk.Size()/size*size - size} {
			parts, err := gptAt(disk, at, size)
			if err != nil || parts != nil {
				return parts, err
			}
		}
	}
	return nil, fmt.Errorf("%w: GPT: neither the table nor its copy is whole", vfs.ErrDamaged)
}

// gptAt reads the table whose header lies at an offset, on a disk with
// sectors of a size. It returns nil if there is none or its checksum is wrong.
func gptAt(disk *vfs.Pages, at, size int64) ([]partition, error) {
	if at < size || at+size > disk.Size() {
		return nil, nil
	}
	h, err := disk.Bytes(at, int(size))
	if err != nil {
		return nil, err
	}
	length := int64(le.Uint32(h[12:]))
	if string(h[:8]) != "EFI PART" || length < 92 || length > size {
		return nil, nil
	}
	header := append([]byte(nil), h[:length]...)
	clear(header[16:20])
	if crc32.ChecksumIEEE(header) != le.Uint32(h[16:]) {
		return nil, nil
	}
	first, count, width := le.Uint64(h[72:]), int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if count == 0 || count > maxGPT || width < 128 || width > 4096 || first > math.MaxInt64/uint64(size) {
		return nil, nil
	}
	if int64(first)*size > disk.Size()-count*width {
		return nil, nil
	}
	entries, err := disk.Bytes(int64(first)*size, int(count*width))
	if err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(entries) != le.Uint32(h[88:]) {
		return nil, nil
	}
	parts := []partition{}
	for k := range count {
		e := entries[k*width:]
		start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		if [16]byte(e[:16]) == [16]byte{} || end < start || end >= uint64(disk.Size()/size) {
			continue
		}
		parts = append(parts, partition{int(k) + 1, int64(start) * size, int64(end-start+1) * size})
	}
	return parts, nil
}
