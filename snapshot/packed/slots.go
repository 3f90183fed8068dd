package packed

import (
	"math/bits"
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// Slots numbers the granules of a file: granule i is in the i-th slot that
// holds data. It takes some 1.5 bits a slot, and never changes.
type Slots struct {
	m       *sparse.Map
	granule int64
	held    []uint64 // a bit for each slot that holds data
	before  []uint32 // granules before each word of held; one more at the end
}

// NewSlots numbers the granules of a file with that map.
func NewSlots(m *sparse.Map, granule int64) *Slots {
	words := int((SlotCount(m.Size(), granule) + 63) / 64)
	s := &Slots{m: m, granule: granule, held: make([]uint64, words), before: make([]uint32, words+1)}
	for _, seg := range m.Segments() {
		s.mark(seg.Offset/granule, SlotCount(seg.Offset+seg.Length, granule))
	}
	for i, w := range s.held {
		s.before[i+1] = s.before[i] + uint32(bits.OnesCount64(w))
	}
	return s
}

// mark notes that slots [from, to) hold data.
func (s *Slots) mark(from, to int64) {
	for from < to {
		word, bit := from/64, from%64
		n := min(to-from, 64-bit)
		s.held[word] |= (^uint64(0) >> (64 - n)) << bit
		from += n
	}
}

// Granules returns the number of granules.
func (s *Slots) Granules() int { return int(s.before[len(s.held)]) }

// Slot returns the slot of granule i.
func (s *Slots) Slot(i int) int64 {
	word := sort.Search(len(s.held), func(w int) bool { return int(s.before[w+1]) > i })
	held := s.held[word]
	for range i - int(s.before[word]) {
		held &= held - 1
	}
	return int64(word)*64 + int64(bits.TrailingZeros64(held))
}

// At returns the granule that holds payload offset off, which must be in
// the payload.
func (s *Slots) At(off int64) int {
	for r := range s.m.Payload(off, 1) {
		return s.Rank(r.Offset / s.granule)
	}
	return s.Granules()
}

// Rank returns the number of granules in slots before that one.
func (s *Slots) Rank(slot int64) int {
	word, bit := slot/64, slot%64
	if word >= int64(len(s.held)) {
		return s.Granules()
	}
	return int(s.before[word]) + bits.OnesCount64(s.held[word]&(1<<bit-1))
}

// Extent returns where the data of granule i lies in the payload.
func (s *Slots) Extent(i int) (off, n int64) {
	slot := s.Slot(i)
	off = s.m.PayloadAt(slot * s.granule)
	return off, s.m.PayloadAt((slot+1)*s.granule) - off
}
