package packed

import (
	"cmp"
	"slices"
)

// Wanted is a granule that somebody wants, with a number of the caller's.
type Wanted struct {
	Granule
	ID int
}

// Range is bytes of a pack that one request brings, and the granules in
// them, ascending by offset.
type Range struct {
	Pack     int
	Offset   int64
	Length   int64
	Granules []Wanted
}

// Plan joins granules of a pack that lie near each other to one range:
// those between which there are at most gap bytes, as long as the range
// has at most limit bytes, or one granule. It sorts wanted.
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
