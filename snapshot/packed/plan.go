package packed

import (
	"cmp"
	"io"
	"slices"
)

// Gap is the largest gap between two granules that one request brings, in
// bytes. It costs less than a round trip.
const Gap = 256 << 10

// Wanted is a granule to read, with a number of the caller's.
type Wanted struct {
	Granule
	ID int
}

// Range is the part of a pack that one request fetches, and the granules in
// it, ascending by offset.
type Range struct {
	Pack     int
	Offset   int64
	Length   int64
	Granules []Wanted
}

// Plan joins granules of a pack that lie near each other into ranges: with
// gaps of at most gap bytes, and at most limit bytes, or one granule. It
// sorts wanted.
func Plan(wanted []Wanted, gap, limit int64) []Range {
	slices.SortFunc(wanted, func(a, b Wanted) int {
		return cmp.Or(cmp.Compare(a.Pack, b.Pack), cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.ID, b.ID))
	})
	var all []Range
	for i, w := range wanted {
		end := w.Offset + w.Stored
		if n := len(all); n > 0 {
			r := &all[n-1]
			if r.Pack == w.Pack && w.Offset-(r.Offset+r.Length) <= gap && end-r.Offset <= limit {
				r.Length = max(r.Length, end-r.Offset)
				r.Granules = wanted[i-len(r.Granules) : i+1]
				continue
			}
		}
		all = append(all, Range{Pack: w.Pack, Offset: w.Offset, Length: w.Stored, Granules: wanted[i : i+1]})
	}
	return all
}

// ReadRoom is the size of a buffer with which ReadFrames makes few reads: a
// granule's frame takes some 10 KiB.
func ReadRoom(granule int64) int64 { return MaxStored(granule) + 128<<10 }

// ReadFrames reads the frames of granules from in, which is their pack from
// offset at on, and calls each for every granule. The granules must ascend
// by offset; several may share a frame, which is read once. The frame is in
// buf, which must have room for MaxStored, until each returns. ReadFrames
// reads no byte beyond the last frame. It returns the first error, which may be
// io.EOF, and the granule that it concerns.
func ReadFrames(in io.Reader, at int64, granules []Wanted, buf []byte, each func(w Wanted, frame []byte) error) (failed Wanted, err error) {
	var last int64
	for _, w := range granules {
		last = max(last, w.Offset+w.Stored)
	}
	held := buf[:0] // bytes of the pack from offset at on
	for _, w := range granules {
		skip := w.Offset - at
		if n := int64(len(held)); skip <= n {
			held = held[skip:]
		} else if _, err := io.CopyN(io.Discard, in, skip-n); err != nil {
			return w, err
		} else {
			held = held[:0]
		}
		at = w.Offset
		if lacks := int(w.Stored) - len(held); lacks > 0 {
			n := copy(buf, held)
			more, err := io.ReadAtLeast(in, buf[n:min(int64(len(buf)), last-at)], lacks)
			if err != nil {
				return w, err
			}
			held = buf[:n+more]
		}
		if err := each(w, held[:w.Stored:w.Stored]); err != nil {
			return w, err
		}
	}
	return Wanted{}, nil
}
