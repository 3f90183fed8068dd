package ntfs

import (
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Types of attributes.
const (
	typeStandard        = 0x10
	typeList            = 0x20
	typeFileName        = 0x30
	typeVolumeName      = 0x60
	typeData            = 0x80
	typeIndexRoot       = 0x90
	typeIndexAllocation = 0xa0
	typeBitmap          = 0xb0
	typeReparse         = 0xc0
	typeEnd             = 0xffffffff
)

// Flags of attributes.
const (
	flagCompressed = 0x0001
	flagEncrypted  = 0x4000
)

// maxList bounds an attribute list (Windows allows 256 KiB) and the records
// that it may name.
const (
	maxList       = 256 << 10
	maxExtensions = 4096
)

// record is a parsed record of the MFT, with the attributes of those that
// extend it.
type record struct {
	number     uint64
	directory  bool
	inUse      bool
	base       uint64 // the record that this one extends, or 0
	attributes []attribute
}

// attribute is a parsed attribute. A resident one has its value, another one
// the pairs that say where its clusters from first on lie.
type attribute struct {
	kind        uint32
	name        string
	flags       uint16
	resident    bool
	value       []byte
	first, last uint64
	pairs       []byte
	unitBits    byte // of a compression unit, in clusters
	allocated   int64
	length      uint64
	initialized uint64
}

func (a *attribute) size() int64 {
	if a.resident {
		return int64(len(a.value))
	}
	return int64(min(a.length, 1<<62))
}

// fixup restores the last two bytes of each 512, which hold a number that
// shows whether all of them were written.
func fixup(b []byte) error {
	offset, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if count == 0 || count-1 > len(b)/512 || offset+2*count > len(b) || offset < 8 {
		return damaged("record with %d fixups at %d", count, offset)
	}
	for k := 1; k < count; k++ {
		at := 512*k - 2
		if b[at] != b[offset] || b[at+1] != b[offset+1] {
			return damaged("record that was not written to its end")
		}
		b[at], b[at+1] = b[offset+2*k], b[offset+2*k+1]
	}
	return nil
}

// parseRecord takes a record as it lies on disk.
func parseRecord(raw []byte, number uint64) (*record, error) {
	b := slices.Clone(raw)
	if string(b[:4]) != "FILE" {
		return nil, damaged("record %d has no magic number", number)
	}
	if err := fixup(b); err != nil {
		return nil, err
	}
	flags := le.Uint16(b[22:])
	r := &record{number: number, inUse: flags&1 != 0, directory: flags&2 != 0, base: le.Uint64(b[32:]) & (1<<48 - 1)}
	used := int(min(le.Uint32(b[24:]), uint32(len(b))))
	for at := int(le.Uint16(b[20:])); at+4 <= used && le.Uint32(b[at:]) != typeEnd; {
		if at+16 > used {
			return nil, damaged("record %d ends early", number)
		}
		length := le.Uint32(b[at+4:])
		if length < 16 || int64(length) > int64(used-at) {
			return nil, damaged("record %d: attribute of %d bytes", number, length)
		}
		a, err := parseAttribute(b[at : at+int(length)])
		if err != nil {
			return nil, err
		}
		r.attributes = append(r.attributes, a)
		at += int(length)
	}
	return r, nil
}

func parseAttribute(b []byte) (attribute, error) {
	a := attribute{kind: le.Uint32(b), flags: le.Uint16(b[12:]), resident: b[8] == 0}
	name, at := int(b[9]), int(le.Uint16(b[10:]))
	if at+2*name > len(b) {
		return a, damaged("attribute %#x: its name lies outside of it", a.kind)
	}
	a.name = text(b[at : at+2*name])
	if a.resident {
		if len(b) < 24 {
			return a, damaged("attribute %#x of %d bytes", a.kind, len(b))
		}
		size, at := le.Uint32(b[16:]), int64(le.Uint16(b[20:]))
		if at+int64(size) > int64(len(b)) {
			return a, damaged("attribute %#x: its value lies outside of it", a.kind)
		}
		a.value = b[at : at+int64(size)]
		return a, nil
	}
	if len(b) < 64 {
		return a, damaged("attribute %#x of %d bytes", a.kind, len(b))
	}
	pairs := int(le.Uint16(b[32:]))
	if pairs > len(b) {
		return a, damaged("attribute %#x: its clusters lie outside of it", a.kind)
	}
	a.first, a.last, a.pairs, a.unitBits = le.Uint64(b[16:]), le.Uint64(b[24:]), b[pairs:], b[34]
	a.length, a.initialized = le.Uint64(b[48:]), le.Uint64(b[56:])
	a.allocated = int64(min(le.Uint64(b[40:]), 1<<62))
	if a.unitBits != 0 && len(b) >= 72 { // sparse or compressed
		a.allocated = int64(min(le.Uint64(b[64:]), 1<<62))
	}
	return a, nil
}

// bare reads a record without those that extend it.
func (f *FS) bare(number uint64) (*record, error) {
	if number >= 1<<48 || f.mft.size/f.recordSize <= int64(number) {
		return nil, damaged("record %d of %d", number, f.mft.size/f.recordSize)
	}
	at := int64(number) * f.recordSize
	if place, n := f.place(f.mft, at); n >= f.recordSize {
		if !f.pages.Has(place) {
			f.prefetchRecords(f.neighbours.Next(number))
		}
		b, err := f.pages.Bytes(place, int(f.recordSize))
		if err != nil {
			return nil, err
		}
		return parseRecord(b, number)
	}
	b := make([]byte, f.recordSize) // in several pieces
	if _, err := f.readStream(f.mft, b, at, nil); err != nil {
		return nil, err
	}
	return parseRecord(b, number)
}

// record reads a record, and those that extend it.
func (f *FS) record(number uint64) (*record, error) {
	r, err := f.bare(number)
	if err != nil {
		return nil, err
	}
	return r, f.extend(r)
}

// existing returns a file that is in use.
func (f *FS) existing(number uint64) (*record, error) {
	f.mu.Lock()
	if r := f.lastRecord; r != nil && r.number == number {
		f.mu.Unlock()
		return r, nil
	}
	f.mu.Unlock()
	r, err := f.record(number)
	if err != nil {
		return nil, err
	}
	if !r.inUse || r.base != 0 {
		return nil, damaged("record %d is not that of a file", number)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastRecord = r
	return r, nil
}

// extend adds the attributes of the records in the attribute list.
func (f *FS) extend(r *record) error {
	at := slices.IndexFunc(r.attributes, func(a attribute) bool { return a.kind == typeList })
	if at < 0 {
		return nil
	}
	list := r.attributes[at]
	b := list.value
	if !list.resident {
		s := &stream{}
		if err := s.add(f, list); err != nil {
			return err
		}
		if s.size > maxList {
			return damaged("record %d: attribute list of %d bytes", r.number, s.size)
		}
		b = make([]byte, s.size)
		if _, err := f.readStream(s, b, 0, nil); err != nil {
			return err
		}
	}
	numbers, err := listed(r, b)
	if err != nil {
		return err
	}
	f.prefetchRecords(numbers)
	for _, n := range numbers {
		more, err := f.bare(n)
		if err != nil {
			return err
		}
		if more.base != r.number {
			return damaged("record %d does not extend record %d", n, r.number)
		}
		r.attributes = append(r.attributes, more.attributes...)
	}
	return nil
}

// listed returns the other records that an attribute list names, once each.
func listed(r *record, b []byte) (numbers []uint64, err error) {
	seen := map[uint64]bool{r.number: true}
	for len(b) >= 26 {
		length := int(le.Uint16(b[4:]))
		if length < 26 || length > len(b) {
			return nil, damaged("record %d: attribute list with an entry of %d bytes", r.number, length)
		}
		n := le.Uint64(b[16:]) & (1<<48 - 1)
		if !seen[n] {
			if len(numbers) == maxExtensions {
				return nil, damaged("record %d is extended by more than %d others", r.number, maxExtensions)
			}
			seen[n] = true
			numbers = append(numbers, n)
		}
		b = b[length:]
	}
	return numbers, nil
}

// prefetchRecords asks for the pages that hold records.
func (f *FS) prefetchRecords(numbers []uint64) {
	var hints []vfs.Extent
	for _, n := range numbers {
		if n >= 1<<48 {
			continue
		}
		if place, length := f.place(f.mft, int64(n)*f.recordSize); length > 0 {
			hints = append(hints, vfs.Extent{Offset: place, Length: f.recordSize})
		}
	}
	if len(hints) > 1 {
		f.pages.Prefetch(hints)
	}
}
