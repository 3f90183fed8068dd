// Package volumes finds the partitions, logical volumes and file systems of a
// raw disk: GPT, MBR with its extended partitions, and LVM with linear and
// striped volumes.
//
// The layouts are those of the UEFI specification (5.3), of the kernel's
// block/partitions and of LVM2's lib/format_text. No table is followed without
// a bound: see the constants of each file.
package volumes

import (
	"encoding/binary"
	"fmt"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// sector is the unit of MBR and LVM, and of most GPTs.
const sector = 512

// maxVolumes bounds what one disk has.
const maxVolumes = 1024

// partition is an entry of a table, in bytes.
type partition struct {
	number       int
	offset, size int64
}

// List returns the partitions of a disk and after them its logical volumes.
// A disk without a table is one volume.
func List(disk vfs.Image) ([]vfs.Volume, error) {
	pages := vfs.NewPages(disk)
	pages.Prefetch([]vfs.Extent{{Offset: 0, Length: ProbeSize}}) // table and probe are one read
	parts, err := table(pages)
	if err != nil {
		return nil, err
	}
	var all []vfs.Volume
	if parts == nil {
		all = []vfs.Volume{{Size: disk.Size(), Image: disk}}
	}
	var hints []vfs.Extent
	for _, p := range parts {
		image := vfs.Section(disk, p.offset, p.size)
		all = append(all, vfs.Volume{Name: fmt.Sprintf("p%d", p.number), Offset: p.offset, Size: image.Size(), Image: image})
		hints = append(hints, vfs.Extent{Offset: p.offset, Length: ProbeSize})
	}
	pages.Prefetch(hints)
	for k := range all {
		head, err := readHead(vfs.Section(pages, all[k].Offset, all[k].Size))
		if err != nil {
			return nil, err
		}
		all[k].Type, all[k].Label = Probe(head)
	}
	logical, err := logicalVolumes(all)
	if err != nil {
		return nil, err
	}
	all = append(all, logical...)
	if len(all) > maxVolumes {
		all = all[:maxVolumes]
	}
	for k := range all {
		all[k].Number = k + 1
	}
	return all, nil
}

// table returns the partitions of a disk, and nil if it has no table.
func table(disk *vfs.Pages) ([]partition, error) {
	if disk.Size() < 2*sector {
		return nil, nil
	}
	first, err := disk.Bytes(0, sector)
	if err != nil {
		return nil, err
	}
	// The boot sectors of FAT and NTFS end as an MBR does.
	if kind, _ := Probe(first); first[510] != 0x55 || first[511] != 0xaa || kind != Unknown {
		return nil, nil
	}
	entries := mbrEntries(first)
	for _, e := range entries {
		if e.kind == mbrProtective {
			return gpt(disk)
		}
	}
	return mbr(disk, entries)
}
