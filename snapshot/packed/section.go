package packed

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// A section before compression is four columns, one after another, each
// with an entry for every slot that holds data, in ascending order:
//
//	packs    varint: index of the pack, less that of the granule before
//	offsets  varint: offset in the pack, less the end of the granule before
//	         if that is in the same pack, else less zero
//	stored   uvarint: length of the frame
//	sums     32 bytes: sha256 of the granule's data
const (
	leastGranule = 3 + 32         // bytes of a granule's entries, at least
	mostGranule  = 3 + 6 + 5 + 32 // and at most
	slotWords    = SectionSlots / 64
)

// Section is the index of up to SectionSlots slots. It is safe for
// concurrent use.
type Section struct {
	first int64 // slot
	held  [slotWords]uint64
	rank  [slotWords]uint16 // granules in the words before

	pack   []uint16
	offset []uint32
	stored []uint32
	sums   []Sum
}

// Granule returns the granule of a slot. It is false for a slot that
// holds no data; the slot must be one of the section's.
func (s *Section) Granule(slot int64) (Granule, bool) {
	at := uint(slot - s.first)
	word, bit := at/64, at%64
	if s.held[word]>>bit&1 == 0 {
		return Granule{}, false
	}
	i := int(s.rank[word]) + bits.OnesCount64(s.held[word]&(1<<bit-1))
	return s.at(i), true
}

func (s *Section) at(i int) Granule {
	return Granule{Pack: int(s.pack[i]), Offset: int64(s.offset[i]), Stored: int64(s.stored[i]), Sum: s.sums[i]}
}

// All yields the section's slots that hold data with their granules,
// ascending.
func (s *Section) All() iter.Seq2[int64, Granule] {
	return func(yield func(int64, Granule) bool) {
		i := 0
		for word, held := range s.held {
			for ; held != 0; held &= held - 1 {
				slot := s.first + int64(word*64+bits.TrailingZeros64(held))
				if !yield(slot, s.at(i)) {
					return
				}
				i++
			}
		}
	}
}

// hold marks the slots of [first, first+SectionSlots) that hold data.
func (s *Section) hold(m *sparse.Map, granule int64) {
	end := (s.first + SectionSlots) * granule
	for off, ok := m.SeekData(s.first * granule); ok && off < end; off, ok = m.SeekData(off) {
		at := off/granule - s.first
		s.held[at/64] |= 1 << (at % 64)
		off = (s.first + at + 1) * granule
	}
	n := 0
	for i, w := range s.held {
		s.rank[i] = uint16(n)
		n += bits.OnesCount64(w)
	}
}

// occupied yields the sections that hold data, with the number of their
// slots that do.
func occupied(m *sparse.Map, granule int64) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		number, n := 0, 0
		next := int64(0) // slot after the last that was counted
		for _, seg := range m.Segments() {
			first, end := max(seg.Offset/granule, next), SlotCount(seg.Offset+seg.Length, granule)
			for first < end {
				if s := int(first / SectionSlots); s != number {
					if n > 0 && !yield(number, n) {
						return
					}
					number, n = s, 0
				}
				step := min(end, int64(number+1)*SectionSlots) - first
				n, first = n+int(step), first+step
			}
			next = max(next, end)
		}
		if n > 0 {
			yield(number, n)
		}
	}
}

// add appends a granule's columns.
func (s *Section) add(g Granule) {
	s.pack = append(s.pack, uint16(g.Pack))
	s.offset = append(s.offset, uint32(g.Offset))
	s.stored = append(s.stored, uint32(g.Stored))
	s.sums = append(s.sums, g.Sum)
}

// encode returns the section's bytes before compression.
func (s *Section) encode() []byte {
	b := make([]byte, 0, len(s.sums)*(leastGranule+5))
	for i := range s.sums {
		b = binary.AppendVarint(b, int64(s.pack[i])-s.packBefore(i))
	}
	for i := range s.sums {
		b = binary.AppendVarint(b, int64(s.offset[i])-s.endBefore(i))
	}
	for _, n := range s.stored {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for i := range s.sums {
		b = append(b, s.sums[i][:]...)
	}
	return b
}

func (s *Section) packBefore(i int) int64 {
	if i == 0 {
		return 0
	}
	return int64(s.pack[i-1])
}

// endBefore returns where granule i begins if it follows the one before in
// the same pack, else zero.
func (s *Section) endBefore(i int) int64 {
	if i == 0 || s.pack[i-1] != s.pack[i] {
		return 0
	}
	return int64(s.offset[i-1]) + int64(s.stored[i-1])
}

// decodeSection parses a section's bytes before compression. Its granules
// lie within their packs and do not overlap unless they are the same.
func decodeSection(b []byte, h *Head, ref SectionRef) (*Section, error) {
	s := &Section{first: int64(ref.Number) * SectionSlots}
	s.hold(h.Map, h.Granule)
	n := ref.Granules
	s.pack, s.offset, s.stored = make([]uint16, n), make([]uint32, n), make([]uint32, n)
	s.sums = make([]Sum, n)
	d := decoder{b: b}
	for i := range n {
		p := s.packBefore(i) + d.varint()
		if d.bad || p < 0 || p >= int64(len(h.Packs)) {
			return nil, wrong("section %d: granule %d is in no pack", ref.Number, i)
		}
		s.pack[i] = uint16(p)
	}
	deltas := make([]int64, n)
	for i := range n {
		deltas[i] = d.varint()
	}
	for i := range n {
		stored, size := int64(d.uvarint()), h.Packs[s.pack[i]].Size
		offset := s.endBefore(i) + deltas[i]
		if d.bad || stored < 1 || stored > MaxStored(h.Granule) || offset < 0 || offset > size-stored {
			return nil, wrong("section %d: granule %d lies outside of its pack", ref.Number, i)
		}
		s.offset[i], s.stored[i] = uint32(offset), uint32(stored)
	}
	if d.bad || len(d.b) != 32*n {
		return nil, wrong("section %d: %d bytes of sums for %d granules", ref.Number, len(d.b), n)
	}
	for i := range s.sums {
		copy(s.sums[i][:], d.b[32*i:])
	}
	return s, s.checkOverlaps(h, ref.Number)
}

// checkOverlaps reports an error if two granules share bytes of a pack and
// are not the same frame with the same sum and length of data, or if one
// sum has two lengths.
func (s *Section) checkOverlaps(h *Head, number int) error {
	type place struct {
		start uint64 // pack and offset
		i     int
		data  int64
	}
	places := make([]place, 0, len(s.sums))
	i := 0
	for slot := range s.All() {
		data := h.Map.PayloadAt((slot+1)*h.Granule) - h.Map.PayloadAt(slot*h.Granule)
		places = append(places, place{uint64(s.pack[i])<<32 | uint64(s.offset[i]), i, data})
		i++
	}
	lengths := make(map[Sum]int64, len(places))
	for _, p := range places {
		if n, ok := lengths[s.sums[p.i]]; ok && n != p.data {
			return wrong("section %d: one digest for %d and for %d bytes", number, n, p.data)
		}
		lengths[s.sums[p.i]] = p.data
	}
	slices.SortFunc(places, func(a, b place) int {
		if a.start != b.start {
			if a.start < b.start {
				return -1
			}
			return 1
		}
		return a.i - b.i
	})
	for k := 1; k < len(places); k++ {
		a, b := places[k-1], places[k]
		same := a.start == b.start && s.stored[a.i] == s.stored[b.i] && s.sums[a.i] == s.sums[b.i]
		if !same && s.pack[a.i] == s.pack[b.i] && b.start < a.start+uint64(s.stored[a.i]) {
			return wrong("section %d: granules overlap in pack %d", number, s.pack[a.i])
		}
	}
	return nil
}

// decoder reads numbers; bad is set once one is cut or too large.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	return take(d, v, n)
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	return take(d, v, n)
}

// mostVarint bounds the numbers of a section: none passes 34 bits.
const mostVarint = 5

func take[T int64 | uint64](d *decoder, v T, n int) T {
	if n <= 0 || n > mostVarint+1 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}
