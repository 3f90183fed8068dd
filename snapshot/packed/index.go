package packed

import (
	"crypto/sha256"
	"errors"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// ReadHead parses the frame at the end of an index. The caller has verified
// its digest. It takes at most MaxHead bytes of memory, and a few times that
// for the result. Errors wrap ErrInvalid.
func ReadHead(frame []byte, f File) (*Head, error) {
	plain, err := decode(frame, MaxHead)
	if err != nil {
		return nil, err
	}
	return decodeHead(plain, f)
}

// ReadSection verifies and parses the frame of a section. Errors wrap
// ErrInvalid.
func ReadSection(frame []byte, h *Head, ref SectionRef) (*Section, error) {
	if int64(len(frame)) != ref.Stored || sha256.Sum256(frame) != ref.Sum {
		return nil, wrong("section %d: its digest does not agree", ref.Number)
	}
	plain, err := decode(frame, ref.Length)
	if err != nil {
		return nil, err
	}
	if int64(len(plain)) != ref.Length {
		return nil, wrong("section %d decodes to %d bytes, not %d", ref.Number, len(plain), ref.Length)
	}
	return decodeSection(plain, h, ref)
}

// decode decompresses a frame of at most most bytes.
func decode(frame []byte, most int64) ([]byte, error) {
	n, ok := zstdframe.ContentSize(frame)
	if !ok || n > most {
		return nil, wrong("a frame of unknown or too large content")
	}
	plain, err := zstdframe.Decode(nil, frame, n)
	if err != nil {
		return nil, wrong("%v", err)
	}
	return plain, nil
}

// Writer makes the index of one file.
type Writer struct {
	granule int64
	enc     *zstdframe.Encoder
	frames  []byte
	refs    []SectionRef
	open    *Section // the section that is being filled, or nil
	last    int64    // the slot added last
}

// NewWriter returns a writer for a file with granules of that size, which
// CheckGranule must accept.
func NewWriter(granule int64, enc *zstdframe.Encoder) *Writer {
	return &Writer{granule: granule, enc: enc, last: -1}
}

// Add adds the granule of a slot. Slots ascend, and every slot that holds
// data is added. The granule's pack is an index into the packs that Finish
// gets.
func (w *Writer) Add(slot int64, g Granule) error {
	switch {
	case slot <= w.last || slot >= MaxSlots:
		return errors.New("packed: granules out of order")
	case g.Pack < 0 || g.Pack >= MaxPacks || g.Offset < 0 || g.Stored < 1 || g.Offset+g.Stored > MaxPackSize:
		return errors.New("packed: a granule outside of every pack")
	}
	if first := slot / SectionSlots * SectionSlots; w.open == nil || w.open.first != first {
		w.closeSection()
		w.open = &Section{first: first}
	}
	w.open.add(g)
	w.last = slot
	return nil
}

func (w *Writer) closeSection() {
	if w.open == nil {
		return
	}
	plain := w.open.encode()
	frame := w.enc.Encode(nil, plain)
	w.refs = append(w.refs, SectionRef{
		Number: int(w.open.first / SectionSlots), Granules: len(w.open.sums),
		Offset: int64(len(w.frames)), Stored: int64(len(frame)), Length: int64(len(plain)), Sum: sha256.Sum256(frame),
	})
	w.frames = append(w.frames, frame...)
	w.open = nil
}

// Finish returns the index and the length of its head, which is the last
// frame. It fails if the added granules are not those of the map, or if no
// reader would accept the index.
func (w *Writer) Finish(m *sparse.Map, packs []Pack) (index []byte, head int, err error) {
	w.closeSection()
	h := &Head{Granule: w.granule, Map: m, Packs: packs, Sections: w.refs}
	if err := h.compareSections(); err != nil {
		return nil, 0, err
	}
	plain := h.encode()
	if len(plain) > MaxHead {
		return nil, 0, wrong("a head of %d bytes, at most %d are read", len(plain), MaxHead)
	}
	// Each granule of a base is valid by itself, but together they may
	// exceed what readers accept.
	for _, ref := range h.Sections {
		if _, err := ReadSection(w.frames[ref.Offset:][:ref.Stored], h, ref); err != nil {
			return nil, 0, err
		}
	}
	frame := w.enc.Encode(nil, plain)
	return append(w.frames, frame...), len(frame), nil
}

// DecodeRoom returns the capacity with which Decode is fastest for granules of
// up to that many bytes.
func DecodeRoom(granule int64) int64 { return granule + zstdframe.Slack }

// Decode decodes the frame of a granule of size bytes into buf[:0], or into
// new memory if that is too small, and compares the data with its sum. It may
// write to all of buf's capacity. Memory is bounded by that and size.
func Decode(buf, frame []byte, size int64, sum Sum) ([]byte, error) {
	if zstdframe.Window(frame) > MaxGranule {
		return nil, wrong("a granule's frame has a window larger than any granule")
	}
	data, err := zstdframe.Decode(buf[:0], frame, size)
	if err != nil {
		return nil, wrong("granule: %v", err)
	}
	if sha256.Sum256(data) != sum {
		return nil, wrong("a granule's digest does not agree")
	}
	return data, nil
}
