package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// compare returns the letter for the difference of two files of one name, or
// "" if the requested properties are equal.
func (t *treeDiffer) compare(a, b *inside.File) (string, error) {
	if a.Type != b.Type || a.Whiteout != b.Whiteout {
		return "T", nil
	}
	if a.Broken != "" || b.Broken != "" {
		return "", nil // nothing is known
	}
	changed, err := t.contents(a, b)
	switch {
	case err != nil:
		return "", err
	case changed:
		return "M", nil
	case !t.metadata:
		return "", nil
	case a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || !a.Modified.Equal(b.Modified) || a.Opaque != b.Opaque || a.Metacopy != b.Metacopy:
		return "U", nil
	}
	same, err := t.sameXattrs(a, b)
	if err != nil || same {
		return "", err
	}
	return "U", nil
}

// contents reports whether the contents of two files of one type differ.
func (t *treeDiffer) contents(a, b *inside.File) (bool, error) {
	switch vfs.Type(a.Type) {
	case vfs.Regular:
	case vfs.Symlink:
		return a.Target != b.Target, nil
	case vfs.CharDevice, vfs.BlockDevice:
		return a.Major != b.Major || a.Minor != b.Minor, nil
	default:
		return false, nil
	}
	switch {
	case a.Size != b.Size || a.Metacopy != b.Metacopy:
		return true, nil
	case !t.checksum:
		return !a.Modified.Equal(b.Modified) || !a.Changed.Equal(b.Changed), nil
	case a.Metacopy || a.Size == 0:
		return false, nil
	}
	return t.differentBytes(a, b)
}

// differentBytes reports whether two files of one size differ. If they are
// at the same places of the disks, and digests show those places to be
// equal, it reads nothing.
func (t *treeDiffer) differentBytes(a, b *inside.File) (bool, error) {
	if t.known {
		onDisk, ok, err := t.diskRanges(a, b)
		if err != nil {
			return false, err
		}
		if ok {
			return t.differentRanges(onDisk)
		}
	}
	var sums [2][]byte
	for i, f := range []*inside.File{a, b} {
		h := sha256.New()
		err := fillGaps(h, 0, f.Size, func(visit func(off int64, p []byte) error) error {
			return t.trees[i].Contents(f, 0, f.Size, visit)
		})
		if errors.Is(err, vfs.ErrDamaged) || errors.Is(err, vfs.ErrMetacopy) {
			t.damaged = t.damaged || errors.Is(err, vfs.ErrDamaged)
			return true, nil
		}
		if err != nil {
			return false, t.explain(i, err)
		}
		sums[i] = h.Sum(nil)
	}
	return !bytes.Equal(sums[0], sums[1]), nil
}

// diskRanges returns the places of both files' data, if they are the same on
// both disks and the files have the same holes.
func (t *treeDiffer) diskRanges(a, b *inside.File) (_ []inside.DiskRange, ok bool, err error) {
	var onDisk [2][]inside.DiskRange
	var extents [2][]inside.Range
	for i, f := range []*inside.File{a, b} {
		onDisk[i], err = t.trees[i].Locate(f.Inode, f.Size)
		if err == nil {
			extents[i], err = t.trees[i].Extents(f.Inode, f.Size)
		}
		if errors.Is(err, vfs.ErrUnsupported) || errors.Is(err, vfs.ErrDamaged) || errors.Is(err, vfs.ErrMetacopy) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, t.explain(i, err)
		}
	}
	var located, data int64
	for _, p := range onDisk[0] {
		located += p.Length
	}
	for _, x := range extents[0] {
		data += x.Length
	}
	// What lies elsewhere is in a journal.
	return onDisk[0], located == data && slices.Equal(onDisk[0], onDisk[1]) && slices.Equal(extents[0], extents[1]), nil
}

// differentRanges compares stretches of both disks, as far as digests leave
// open whether they are equal.
func (t *treeDiffer) differentRanges(onDisk []inside.DiskRange) (bool, error) {
	for _, p := range onDisk {
		end := p.Disk + p.Length
		for at := p.Disk; at < end; {
			i := firstAfter(t.ranges, at)
			if i == len(t.ranges) || t.ranges[i].Offset >= end {
				t.skipped += end - at
				break
			}
			if from := t.ranges[i].Offset; from > at {
				t.skipped += from - at
				at = from
			}
			to := min(end, t.ranges[i].Offset+t.ranges[i].Length)
			same, err := t.sameStretch(at, to)
			if err != nil || !same {
				return !same, err
			}
			at = to
		}
	}
	return false, nil
}

// sameStretch compares [at, to) of both disks.
func (t *treeDiffer) sameStretch(at, to int64) (bool, error) {
	const step = 1 << 20
	for ; at < to; at += step {
		var sides [2][]byte
		for i := range sides {
			sides[i] = make([]byte, min(step, to-at))
			if n, err := t.disks[i].ReadOn(t.ctx, sides[i], at); n < len(sides[i]) {
				return false, t.explain(i, err)
			}
		}
		if !bytes.Equal(sides[0], sides[1]) {
			return false, nil
		}
	}
	return true, nil
}

func (t *treeDiffer) sameXattrs(a, b *inside.File) (bool, error) {
	var sides [2]map[string]string
	for i, f := range []*inside.File{a, b} {
		var err error
		if sides[i], err = t.trees[i].Xattrs(f.Inode); err != nil {
			if errors.Is(err, vfs.ErrUnsupported) || errors.Is(err, vfs.ErrDamaged) {
				return true, nil
			}
			return false, t.explain(i, err)
		}
	}
	return maps.Equal(sides[0], sides[1]), nil
}
