package packed

import (
	"encoding/binary"
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// The head before compression. Fixed numbers are little-endian.
//
//	 0  8  magic "epochfsH"
//	 8  4  version, 1
//	12  4  granule size in bytes
//	16  8  apparent size of the file in bytes
//	24  8  bytes of data
//	32  4  number of packs
//	36  4  number of sections that hold granules
//	40  8  number of segments of the map
//	48     packs, 40 bytes each: sha256 of the blob, its size (8)
//	       sections, 48 bytes each, ascending: number (4), granules (4),
//	       length of its frame (4), length decoded (4), sha256 of the frame
//	       segments, two uvarints each: gap since the end of the one
//	       before, length
const (
	headMagic   = "epochfsH"
	headVersion = 1
	headFixed   = 48
	packBytes   = 40
	refBytes    = 48

	// MaxHead bounds a head before compression, in bytes: a map of
	// sparse.MaxSegments and the sections of MaxSlots fit.
	MaxHead = 32 << 20
)

// Pack names a blob of granules.
type Pack struct {
	Digest Sum
	Size   int64 // in bytes
}

// SectionRef is a section as the head knows it.
type SectionRef struct {
	Number   int   // its first slot is Number*SectionSlots
	Granules int   // how many of its slots hold data
	Offset   int64 // of its frame in the index, in bytes
	Stored   int64 // length of the frame, in bytes
	Length   int64 // length decoded, in bytes
	Sum      Sum   // of the frame
}

// Head is the part of an index that describes the whole file.
type Head struct {
	Granule  int64 // granule size, in bytes
	Map      *sparse.Map
	Packs    []Pack
	Sections []SectionRef // ascending; those without granules are left out
}

// Slots returns the number of slots of the file.
func (h *Head) Slots() int64 { return SlotCount(h.Map.Size(), h.Granule) }

// Section returns the section with that number. It is false for one that
// holds no granule.
func (h *Head) Section(number int) (SectionRef, bool) {
	i := sort.Search(len(h.Sections), func(i int) bool { return h.Sections[i].Number >= number })
	if i == len(h.Sections) || h.Sections[i].Number != number {
		return SectionRef{}, false
	}
	return h.Sections[i], true
}

// encode returns the head's bytes before compression.
func (h *Head) encode() []byte {
	b := make([]byte, 0, headFixed+packBytes*len(h.Packs)+refBytes*len(h.Sections)+8*h.Map.Len())
	b = append(b, headMagic...)
	b = binary.LittleEndian.AppendUint32(b, headVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Granule))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Map.Size()))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Map.DataSize()))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.Packs)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(h.Sections)))
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Map.Len()))
	for _, p := range h.Packs {
		b = append(b, p.Digest[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(p.Size))
	}
	for _, s := range h.Sections {
		b = binary.LittleEndian.AppendUint32(b, uint32(s.Number))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.Granules))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.Stored))
		b = binary.LittleEndian.AppendUint32(b, uint32(s.Length))
		b = append(b, s.Sum[:]...)
	}
	end := int64(0)
	for _, s := range h.Map.Segments() {
		b = binary.AppendUvarint(b, uint64(s.Offset-end))
		b = binary.AppendUvarint(b, uint64(s.Length))
		end = s.Offset + s.Length
	}
	return b
}

// File is the config blob's description of a packed file. A head that
// disagrees is invalid.
type File struct {
	Size    int64 // apparent, in bytes
	Data    int64 // bytes of data
	Granule int64 // granule size, in bytes
	Frames  int64 // bytes of the index before its head
}

// decodeHead parses a head's bytes before compression. The result is within
// every bound of the package; errors wrap ErrInvalid.
func decodeHead(b []byte, f File) (*Head, error) {
	if len(b) < headFixed || string(b[:8]) != headMagic {
		return nil, wrong("no head")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != headVersion {
		return nil, wrong("version %d of the head is not known", v)
	}
	h := &Head{Granule: int64(binary.LittleEndian.Uint32(b[12:]))}
	size, data := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if h.Granule != f.Granule || size != uint64(f.Size) || data != uint64(f.Data) {
		return nil, wrong("the head is of another file than the config says")
	}
	if err := CheckGranule(h.Granule); err != nil {
		return nil, err
	}
	if f.Size < 0 || f.Size > sparse.MaxSize || SlotCount(f.Size, h.Granule) > MaxSlots {
		return nil, wrong("a file of %d bytes in granules of %d", f.Size, h.Granule)
	}
	packs, sections := binary.LittleEndian.Uint32(b[32:]), binary.LittleEndian.Uint32(b[36:])
	segments := binary.LittleEndian.Uint64(b[40:])
	rest := b[headFixed:]
	if packs > MaxPacks || sections > MaxSlots/SectionSlots || segments > sparse.MaxSegments ||
		uint64(len(rest)) < uint64(packs)*packBytes+uint64(sections)*refBytes+2*segments {
		return nil, wrong("%d packs, %d sections and %d segments in %d bytes", packs, sections, segments, len(b))
	}
	rest, err := h.decodePacks(rest, int(packs))
	if err != nil {
		return nil, err
	}
	refs := rest[:int(sections)*refBytes]
	if h.Map, err = decodeMap(rest[len(refs):], int(segments), f); err != nil {
		return nil, err
	}
	return h, h.decodeSections(refs, f)
}

func (h *Head) decodePacks(b []byte, n int) (rest []byte, err error) {
	h.Packs = make([]Pack, n)
	seen := make(map[Sum]bool, n)
	for i := range h.Packs {
		p := &h.Packs[i]
		copy(p.Digest[:], b)
		size := binary.LittleEndian.Uint64(b[len(p.Digest):])
		if size == 0 || size > MaxPackSize {
			return nil, wrong("a pack of %d bytes", size)
		}
		if seen[p.Digest] {
			return nil, wrong("pack %x is listed twice", p.Digest)
		}
		seen[p.Digest] = true
		p.Size = int64(size)
		b = b[packBytes:]
	}
	return b, nil
}

func decodeMap(b []byte, n int, f File) (*sparse.Map, error) {
	segs := make([]sparse.Segment, n)
	end := int64(0)
	for i := range segs {
		gap, k := binary.Uvarint(b)
		b = b[max(k, 0):]
		length, l := binary.Uvarint(b)
		b = b[max(l, 0):]
		if k <= 0 || l <= 0 || gap > uint64(f.Size-end) || length == 0 || length > uint64(f.Size-end)-gap {
			return nil, wrong("segment %d of the map", i)
		}
		segs[i] = sparse.Segment{Offset: end + int64(gap), Length: int64(length)}
		end = segs[i].Offset + segs[i].Length
	}
	if len(b) > 0 {
		return nil, wrong("%d bytes follow the map", len(b))
	}
	m, err := sparse.New(segs, f.Size)
	if err != nil {
		return nil, wrong("%v", err)
	}
	if m.DataSize() != f.Data {
		return nil, wrong("the map has %d bytes of data, not %d", m.DataSize(), f.Data)
	}
	return m, nil
}

// decodeSections reads the table of sections, and compares it with the
// map: a slot has a granule exactly if it holds data.
func (h *Head) decodeSections(b []byte, f File) error {
	h.Sections = make([]SectionRef, 0, len(b)/refBytes)
	offset, before := int64(0), -1
	for ; len(b) > 0; b = b[refBytes:] {
		s := SectionRef{
			Number:   int(binary.LittleEndian.Uint32(b)),
			Granules: int(binary.LittleEndian.Uint32(b[4:])),
			Offset:   offset,
			Stored:   int64(binary.LittleEndian.Uint32(b[8:])),
			Length:   int64(binary.LittleEndian.Uint32(b[12:])),
		}
		copy(s.Sum[:], b[16:])
		switch {
		case s.Number <= before:
			return wrong("section %d follows section %d", s.Number, before)
		case s.Granules < 1 || s.Granules > SectionSlots:
			return wrong("a section with %d granules", s.Granules)
		case s.Length < int64(s.Granules)*leastGranule || s.Length > int64(s.Granules)*mostGranule:
			return wrong("a section of %d bytes for %d granules", s.Length, s.Granules)
		case s.Stored < 1 || s.Stored > MaxStored(s.Length):
			return wrong("a section of %d bytes stored, %d decoded", s.Stored, s.Length)
		}
		offset, before = offset+s.Stored, s.Number
		h.Sections = append(h.Sections, s)
	}
	if offset != f.Frames {
		return wrong("its sections have %d bytes, not %d", offset, f.Frames)
	}
	return h.compareSections()
}

// compareSections reports an error unless the table of sections has every
// slot that holds data, and no other.
func (h *Head) compareSections() error {
	want := h.Sections
	for number, granules := range occupied(h.Map, h.Granule) {
		if len(want) == 0 || want[0].Number != number || want[0].Granules != granules {
			return wrong("section %d holds %d granules by the map, and others by the table", number, granules)
		}
		want = want[1:]
	}
	if len(want) > 0 {
		return wrong("section %d holds nothing by the map", want[0].Number)
	}
	return nil
}
