package packed

import (
	"math/rand/v2"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

func TestSlots(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		m := randomMap(t, r, 1<<20+r.Int64N(60<<20))
		s := NewSlots(m, MinGranule)
		n, at := 0, int64(0)
		for slot := range SlotCount(m.Size(), MinGranule) {
			if s.Rank(slot) != n {
				t.Fatalf("%d granules before slot %d, not %d", s.Rank(slot), slot, n)
			}
			if !holdsData(m, MinGranule, slot) {
				continue
			}
			if s.Slot(n) != slot {
				t.Fatalf("granule %d is in slot %d, not %d", n, s.Slot(n), slot)
			}
			off, length := s.Extent(n)
			if off != at || length < 1 || s.At(off) != n || s.At(off+length-1) != n {
				t.Fatalf("granule %d is at %d, %d bytes", n, off, length)
			}
			at += length
			n++
		}
		if s.Granules() != n || at != m.DataSize() || s.Rank(1<<40) != n {
			t.Fatalf("%d granules, %d bytes", s.Granules(), at)
		}
	}
	if s := NewSlots(sparse.Dense(0), MinGranule); s.Granules() != 0 {
		t.Error(s.Granules())
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	g := func(pack int, off, stored int64) Wanted {
		return Wanted{Granule{Pack: pack, Offset: off, Stored: stored}, int(off)}
	}
	for name, c := range map[string]struct {
		wanted []Wanted
		want   [][3]int64 // pack, offset, length
	}{
		"nothing":         {nil, nil},
		"one":             {[]Wanted{g(0, 5, 10)}, [][3]int64{{0, 5, 10}}},
		"neighbours":      {[]Wanted{g(0, 15, 10), g(0, 5, 10)}, [][3]int64{{0, 5, 20}}},
		"a small gap":     {[]Wanted{g(0, 0, 10), g(0, 20, 10)}, [][3]int64{{0, 0, 30}}},
		"a large gap":     {[]Wanted{g(0, 0, 10), g(0, 21, 10)}, [][3]int64{{0, 0, 10}, {0, 21, 10}}},
		"too long":        {[]Wanted{g(0, 0, 60), g(0, 60, 41)}, [][3]int64{{0, 0, 60}, {0, 60, 41}}},
		"two packs":       {[]Wanted{g(1, 0, 10), g(0, 10, 10)}, [][3]int64{{0, 10, 10}, {1, 0, 10}}},
		"the same twice":  {[]Wanted{g(0, 5, 10), g(0, 5, 10)}, [][3]int64{{0, 5, 10}}},
		"one above limit": {[]Wanted{g(0, 0, 200)}, [][3]int64{{0, 0, 200}}},
	} {
		got := Plan(c.wanted, 10, 100)
		granules := 0
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", name, got)
			continue
		}
		for i, r := range got {
			if [3]int64{int64(r.Pack), r.Offset, r.Length} != c.want[i] {
				t.Errorf("%s: %v", name, r)
			}
			for _, w := range r.Granules {
				if w.Pack != r.Pack || w.Offset < r.Offset || w.Offset+w.Stored > r.Offset+r.Length {
					t.Errorf("%s: %v holds %v", name, r, w)
				}
			}
			granules += len(r.Granules)
		}
		if granules != len(c.wanted) {
			t.Errorf("%s: %d granules of %d", name, granules, len(c.wanted))
		}
	}
}
