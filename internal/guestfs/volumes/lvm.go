package volumes

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// physical is a physical volume: a volume of the disk that LVM cuts in
// extents.
type physical struct {
	id    string
	image vfs.Image
	index int // of the volume
}

// findLabel looks for LVM's label in the first four sectors.
func findLabel(head []byte) (offset int, ok bool) {
	for at := 0; at+sector <= min(len(head), 4*sector); at += sector {
		if string(head[at:at+8]) == "LABELONE" && string(head[at+24:at+32]) == "LVM2 001" {
			return at, true
		}
	}
	return 0, false
}

// logicalVolumes returns the logical volumes of the physical ones among all.
func logicalVolumes(all []vfs.Volume) ([]vfs.Volume, error) {
	var pvs []physical
	var groups []section
	names := map[string]int{} // of a group's id: its index in groups
	left := uint64(maxText)
	for k, v := range all {
		if v.Type != lvm {
			continue
		}
		pages := vfs.NewPages(v.Image)
		pv, text, err := readPhysical(pages, &left)
		if errors.Is(err, vfs.ErrDamaged) {
			all[k].Type = LVMDamaged // the other volumes can be read
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("volume %d: %w", k+1, err)
		}
		pv.image, pv.index = v.Image, k
		pvs = append(pvs, pv)
		for name, g := range text {
			group, ok := g.(section)
			if !ok || group.below("physical_volumes") == nil {
				continue
			}
			group["\x00name"] = name
			id := group.text("id")
			at, known := names[id]
			switch {
			case !known:
				names[id] = len(groups)
				groups = append(groups, group)
			case groups[at].number("seqno") < group.number("seqno"):
				groups[at] = group
			}
		}
	}
	var logical []vfs.Volume
	for _, g := range groups {
		more, err := volumesOf(g, pvs, all)
		if errors.Is(err, vfs.ErrDamaged) {
			for _, pv := range pvs {
				all[pv.index].Type = LVMDamaged
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		logical = append(logical, more...)
	}
	return logical, nil
}

// readPhysical reads the label and the newest text of a physical volume.
func readPhysical(pages *vfs.Pages, left *uint64) (physical, section, error) {
	head, err := pages.Bytes(0, int(min(4*sector, pages.Size())))
	if err != nil {
		return physical{}, nil, err
	}
	at, ok := findLabel(head)
	if !ok {
		return physical{}, nil, fmt.Errorf("%w: LVM label is gone", vfs.ErrDamaged)
	}
	label := head[at : at+sector]
	header := int(le.Uint32(label[20:]))
	if header < 32 || header+40 > sector {
		return physical{}, nil, fmt.Errorf("%w: LVM label's contents are at %d", vfs.ErrDamaged, header)
	}
	pv := physical{id: string(label[header : header+32])}
	// Two lists of offsets and sizes follow, each ended by zeros: data areas,
	// then metadata areas.
	lists := 0
	var newest section
	for b := label[header+40:]; len(b) >= 16 && lists < 2; b = b[16:] {
		offset, size := le.Uint64(b), le.Uint64(b[8:])
		if offset == 0 {
			lists++
			continue
		}
		if lists == 0 {
			continue
		}
		text, err := readArea(pages, offset, size, left)
		if err != nil {
			return physical{}, nil, err
		}
		if newest == nil || seqno(text) > seqno(newest) {
			newest = text
		}
	}
	return pv, newest, nil
}

// seqno is the number of changes of the group in a text.
func seqno(text section) int64 {
	for _, g := range text {
		if group, ok := g.(section); ok {
			return group.number("seqno")
		}
	}
	return 0
}

// readArea reads the text in a metadata area: a ring behind a sector that
// says where the newest one begins.
func readArea(pages *vfs.Pages, offset, size uint64, left *uint64) (section, error) {
	if offset > math.MaxInt64/2 || size > math.MaxInt64/2 || int64(offset+size) > pages.Size() || size < 2*sector {
		return nil, fmt.Errorf("%w: LVM metadata lies beyond the end", vfs.ErrDamaged)
	}
	h, err := pages.Bytes(int64(offset), sector)
	if err != nil {
		return nil, err
	}
	if string(h[4:20]) != " LVM2 x[5A%r0N*>" {
		return nil, fmt.Errorf("%w: LVM metadata has no magic number", vfs.ErrDamaged)
	}
	start, length, checksum := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:])
	if length == 0 || start == 0 {
		return section{}, nil // no group yet
	}
	if start < sector || start >= size || length > size-sector || length > *left {
		return nil, fmt.Errorf("%w: LVM metadata of %d bytes at %d of %d", vfs.ErrDamaged, length, start, size)
	}
	*left -= length
	first := min(length, size-start)
	b, err := pages.Bytes(int64(offset+start), int(first))
	if err != nil {
		return nil, err
	}
	if first < length {
		rest, err := pages.Bytes(int64(offset+sector), int(length-first))
		if err != nil {
			return nil, err
		}
		b = append(slices.Clone(b), rest...)
	}
	// LVM's CRC begins with a number of its own and is not inverted.
	const initial = 0xf597a6cf
	if ^crc32.Update(^uint32(initial), crc32.IEEETable, b) != checksum {
		return nil, fmt.Errorf("%w: LVM metadata has a wrong checksum", vfs.ErrDamaged)
	}
	return parseText(b)
}

// volumesOf returns the visible logical volumes of a group.
func volumesOf(g section, pvs []physical, all []vfs.Volume) (logical []vfs.Volume, err error) {
	extent := g.number("extent_size")
	if extent <= 0 || extent > 1<<32 {
		return nil, fmt.Errorf("%w: LVM extents of %d sectors", vfs.ErrDamaged, extent)
	}
	lvs := g.below("logical_volumes")
	for _, name := range slices.Sorted(maps.Keys(lvs)) {
		lv := lvs.below(name)
		if !slices.Contains(lv.list("status"), any("VISIBLE")) || len(logical) == maxVolumes {
			continue
		}
		img, kind, err := mapLogical(g, lv, pvs, extent*sector)
		if err != nil {
			return nil, fmt.Errorf("logical volume %q: %w", name, err)
		}
		v := vfs.Volume{Name: g.text("\x00name") + "/" + name, Type: kind, Offset: -1, Size: img.Size(), Image: img}
		if one, ok := img.single(); ok {
			if start := all[pvs[one.pv].index].Offset; start >= 0 {
				v.Offset = start + one.offset
			}
		}
		if kind == "" {
			head, err := readHead(img)
			switch {
			case isMissing(err):
				v.Type = "lvm incomplete"
			case err != nil:
				return nil, err
			default:
				v.Type, v.Label = Probe(head)
			}
		}
		logical = append(logical, v)
	}
	return logical, nil
}

// undashed turns an id of a text into one of a label.
func undashed(text string) string { return strings.ReplaceAll(text, "-", "") }
