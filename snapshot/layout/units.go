package layout

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// Unit is a range of a file's payload with a digest of its own. Equal units
// hold equal bytes; different units may hold the same bytes in another
// encoding.
type Unit struct {
	Digest   string   // of the stored bytes, or of a granule's data; "sha256:" and 64 hex digits
	Encoding Encoding // of the stored bytes
	Offset   int64    // in the payload
	Length   int64
}

// Units yields the file's smallest units with digests, in payload order and
// without gaps: the granules of a packed file, the pieces of a blob with
// piece digests, otherwise the blob. It stops at the first error, which can
// only come from fetching the index of a packed file.
func (f *File) Units(ctx context.Context) iter.Seq2[Unit, error] {
	if f.Index != nil {
		return f.Index.units(ctx)
	}
	return func(yield func(Unit, error) bool) {
		for i := range f.Parts {
			p := &f.Parts[i]
			if p.Pieces == nil || p.Encoding != Raw || p.Pieces.Size <= 0 {
				if !yield(Unit{p.Digest, p.Encoding, p.Offset, p.Length}, nil) {
					return
				}
				continue
			}
			for k, off := int64(0), int64(0); off < p.Length; k, off = k+1, off+p.Pieces.Size {
				sum := p.Pieces.Sum(k)
				u := Unit{digests.Format(sum), Raw, p.Offset + off, min(p.Pieces.Size, p.Length-off)}
				if !yield(u, nil) {
					return
				}
			}
		}
	}
}

// units yields the granules of a packed file.
func (x *Index) units(ctx context.Context) iter.Seq2[Unit, error] {
	return func(yield func(Unit, error) bool) {
		for i := range x.Granules() {
			g, err := x.Granule(ctx, i)
			off, n := x.Extent(i)
			if !yield(Unit{digests.Format(g.Sum), Packed, off, n}, err) || err != nil {
				return
			}
		}
	}
}

// Differing compares two files by their digests, without reading a byte, and
// returns the ranges in which they may differ: outside these ranges both
// files have the same bytes, or both have ended. The ranges ascend, do not
// touch, and extend to the end of the larger file. An error can only come
// from fetching the index of a packed file.
func Differing(ctx context.Context, a, b *File) ([]sparse.Segment, error) {
	if a.Key() == b.Key() {
		return nil, nil
	}
	// Units match if they hold the same bytes at the same place.
	type place struct {
		unit Unit
		at   int64 // file offset of its first byte
	}
	where := func(f *File, u Unit) place {
		p := place{unit: u, at: -1}
		p.unit.Offset = 0
		for run := range f.Map.Payload(u.Offset, u.Length) {
			p.at = run.Offset
			break
		}
		return p
	}
	inA := map[place]int64{} // offsets in a's payload
	for u, err := range a.Units(ctx) {
		if err != nil {
			return nil, err
		}
		inA[where(a, u)] = u.Offset
	}
	var ranges []sparse.Segment
	for u, err := range b.Units(ctx) {
		if err != nil {
			return nil, err
		}
		p := where(b, u)
		if off, ok := inA[p]; ok && sameRuns(a, b, off, u.Offset, u.Length) {
			delete(inA, p)
			continue
		}
		ranges = appendRuns(ranges, b, u.Offset, u.Length)
	}
	for p, off := range inA {
		ranges = appendRuns(ranges, a, off, p.unit.Length)
	}
	if short, long := min(a.Size(), b.Size()), max(a.Size(), b.Size()); short < long {
		ranges = append(ranges, sparse.Segment{Offset: short, Length: long - short})
	}
	return joined(ranges), nil
}

// sameRuns reports whether n bytes of two payloads lie at the same offsets
// of their files.
func sameRuns(a, b *File, offA, offB, n int64) bool {
	next, stop := iter.Pull(b.Map.Payload(offB, n))
	defer stop()
	var left sparse.Run
	for r := range a.Map.Payload(offA, n) {
		for r.Length > 0 {
			if left.Length == 0 {
				var ok bool
				if left, ok = next(); !ok {
					return false
				}
			}
			if r.Offset != left.Offset {
				return false
			}
			step := min(r.Length, left.Length)
			r.Offset, r.Length = r.Offset+step, r.Length-step
			left.Offset, left.Length = left.Offset+step, left.Length-step
		}
	}
	return true
}

func appendRuns(ranges []sparse.Segment, f *File, off, n int64) []sparse.Segment {
	for r := range f.Map.Payload(off, n) {
		if k := len(ranges) - 1; k >= 0 && ranges[k].Offset+ranges[k].Length == r.Offset {
			ranges[k].Length += r.Length
			continue
		}
		ranges = append(ranges, sparse.Segment{Offset: r.Offset, Length: r.Length})
	}
	return ranges
}

// joined sorts ranges and merges those that touch.
func joined(ranges []sparse.Segment) []sparse.Segment {
	slices.SortFunc(ranges, func(a, b sparse.Segment) int { return cmp.Compare(a.Offset, b.Offset) })
	all := ranges[:0]
	for _, r := range ranges {
		if k := len(all) - 1; k >= 0 && r.Offset <= all[k].Offset+all[k].Length {
			all[k].Length = max(all[k].Length, r.Offset+r.Length-all[k].Offset)
			continue
		}
		all = append(all, r)
	}
	return all
}
