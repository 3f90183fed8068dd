package vfs

import (
	"fmt"
	"io"
	"slices"
)

// ReadFull reads exactly len(p) bytes. A range that is not within the image
// is damage: it comes from a field of the guest's.
func ReadFull(img Image, p []byte, off int64) error {
	if off < 0 || int64(len(p)) > img.Size() || off > img.Size()-int64(len(p)) {
		return fmt.Errorf("%w: %d bytes at %d lie beyond the end at %d", ErrDamaged, len(p), off, img.Size())
	}
	n, err := img.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// Prefetch passes ranges to an image that is a Prefetcher: sorted, cut at the
// image's end, and joined where the gap between them is smaller than Reach.
func Prefetch(img Image, ranges []Extent) {
	p, ok := img.(Prefetcher)
	if !ok {
		return
	}
	if joined := Join(ranges, Reach, img.Size()); len(joined) > 0 {
		p.Prefetch(joined)
	}
}

// Join sorts ranges, cuts them at size, and joins those whose gap is smaller
// than gap.
func Join(ranges []Extent, gap, size int64) []Extent {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Extent) int {
		switch {
		case a.Offset < b.Offset:
			return -1
		case a.Offset > b.Offset:
			return 1
		}
		return 0
	})
	joined := sorted[:0]
	for _, r := range sorted {
		if r.Offset < 0 || r.Length <= 0 || r.Offset >= size {
			continue
		}
		r.Length = min(r.Length, size-r.Offset)
		if n := len(joined); n > 0 && r.Offset-(joined[n-1].Offset+joined[n-1].Length) < gap {
			last := &joined[n-1]
			last.Length = max(last.Length, r.Offset+r.Length-last.Offset)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// section is a range of an image.
type section struct {
	img       Image
	off, size int64
}

// Section returns the range of img that begins at off, cut at img's end.
func Section(img Image, off, size int64) Image {
	off = max(0, min(off, img.Size()))
	return &section{img: img, off: off, size: max(0, min(size, img.Size()-off))}
}

func (s *section) Size() int64 { return s.size }

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	n, err := Clip(p, off, s.size)
	if n > 0 {
		if got, rerr := s.img.ReadAt(p[:n], s.off+off); got < n {
			return got, rerr
		}
	}
	return n, err
}

// Clip returns how many bytes of a read of p at off lie before size, and
// io.EOF if that is not all of them.
func Clip(p []byte, off, size int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("%w: offset %d", ErrDamaged, off)
	case off >= size:
		return 0, io.EOF
	case int64(len(p)) > size-off:
		return int(size - off), io.EOF
	}
	return len(p), nil
}

func (s *section) Prefetch(ranges []Extent) {
	var below []Extent
	for _, r := range ranges {
		if r.Offset < 0 || r.Length <= 0 || r.Offset >= s.size {
			continue
		}
		below = append(below, Extent{s.off + r.Offset, min(r.Length, s.size-r.Offset)})
	}
	Prefetch(s.img, below)
}
