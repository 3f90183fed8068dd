package workingset

import "fmt"

// enoughRuns is from how many recordings on a page that was touched in one
// of them alone is left out.
const enoughRuns = 3

// Merge returns the union of sets of the same snapshot. With three or more
// recordings in all it leaves out the pages that were touched in one alone.
// Of a title with several contents the last one counts. The sets stay as
// they are.
func Merge(sets ...*Set) (*Set, error) {
	out := &Set{}
	at := map[string]int{}
	for _, s := range sets {
		if err := s.check(); err != nil {
			return nil, err
		}
		out.Runs += s.Runs
		out.Partial = out.Partial || s.Partial
		for _, f := range s.Files {
			i, ok := at[f.Title]
			switch {
			case !ok:
				at[f.Title] = len(out.Files)
				out.Files = append(out.Files, f)
			case out.Files[i].Content != f.Content || out.Files[i].Size != f.Size:
				out.Files[i] = f
			default:
				out.Files[i].Extents = union(out.Files[i].Extents, f.Extents)
			}
		}
	}
	if out.Runs == 0 {
		return nil, fmt.Errorf("%w: nothing to merge", ErrInvalid)
	}
	for i := range out.Files {
		least := 1
		if out.Runs >= enoughRuns {
			least = 2
		}
		out.Files[i].Extents = seen(out.Files[i].Extents, least)
	}
	return out, nil
}

// seen returns the extents that were touched in at least that many
// recordings, joined where nothing distinguishes neighbours.
func seen(all []Extent, least int) []Extent {
	var out []Extent
	for _, e := range all {
		if e.Runs >= least {
			out = appendExtent(out, e)
		}
	}
	return out
}

// appendExtent adds an extent after the others, to the last one if it goes
// on where that ends.
func appendExtent(all []Extent, e Extent) []Extent {
	if n := len(all); n > 0 {
		last := &all[n-1]
		if last.End() == e.Page && last.Stage == e.Stage && last.Runs == e.Runs {
			last.Pages += e.Pages
			return all
		}
	}
	return append(all, e)
}

// union returns the pages of a and b: each in the earlier of its stages, with
// the sum of its recordings.
func union(a, b []Extent) []Extent {
	out := make([]Extent, 0, max(len(a), len(b)))
	x, y := &cursor{all: a}, &cursor{all: b}
	for !x.done() || !y.done() {
		if x.done() || !y.done() && y.first().Page < x.first().Page {
			x, y = y, x
		}
		// x begins first, or both begin at the same page.
		e := x.first()
		switch {
		case y.done() || y.first().Page >= e.End():
			x.skip(e.Pages)
		case y.first().Page > e.Page:
			e.Pages = y.first().Page - e.Page
			x.skip(e.Pages)
		default:
			other := y.first()
			e.Pages = min(e.Pages, other.Pages)
			e.Stage = min(e.Stage, other.Stage)
			e.Runs += other.Runs
			x.skip(e.Pages)
			y.skip(e.Pages)
		}
		out = appendExtent(out, e)
	}
	return out
}

// cursor goes through extents without changing them.
type cursor struct {
	all  []Extent
	gone int64 // pages of the first extent that are behind it
}

func (c *cursor) done() bool { return len(c.all) == 0 }

// first returns the rest of the first extent.
func (c *cursor) first() Extent {
	e := c.all[0]
	e.Page += c.gone
	e.Pages -= c.gone
	return e
}

// skip passes n pages of the first extent.
func (c *cursor) skip(n int64) {
	if c.gone += n; c.gone == c.all[0].Pages {
		c.all, c.gone = c.all[1:], 0
	}
}
