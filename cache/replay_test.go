package cache

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/packedtest"
)

// randomExtents are extents of pages of a file, some of them wrong: beyond
// its end, over each other, empty.
func randomExtents(rng *rand.Rand, size int64) (all []Extent) {
	for range 40 {
		all = append(all, Extent{rng.Int64N(size+8192) / 4096 * 4096, rng.Int64N(10) * 4096})
	}
	return append(all, Extent{-4096, 8192}, Extent{size, 1 << 62}, Extent{1 << 62, 1 << 62}, Extent{0, -1})
}

// marked reports which bytes of a file lie in extents and are data.
func marked(a artifact, extents []Extent) []bool {
	want := make([]bool, len(a.flat))
	data := make([]bool, len(a.flat))
	for _, s := range a.file.Map.Segments() {
		for i := s.Offset; i < s.Offset+s.Length; i++ {
			data[i] = true
		}
	}
	for _, x := range extents {
		for i := max(x.Off, 0); i < int64(len(want)) && i-x.Off < x.N; i++ {
			want[i] = data[i]
		}
	}
	return want
}

// replay replays all stages.
func replay(f *File, stages [][]Extent, onPresent func(Extent, bool)) {
	r := f.Replay(context.Background(), stages, onPresent)
	for r.Next() {
	}
	<-r.Done()
}

// A replay tells of each byte of data in its extents when it can be read
// without the network, over a link that breaks, and of nothing else.
func TestReplay(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			rng := newRand(t)
			src := &fakeSource{}
			var calls atomic.Int64
			src.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
				if calls.Add(1)%9 == 1 {
					return b[:len(b)/2], errCut
				}
				return b, nil
			}
			a := makeFile(t, rng, src, k, 2<<20)
			c := openCache(t, t.TempDir(), Options{})
			h := openFile(t, c, a.file, src)
			extents := randomExtents(rng, a.file.Size())
			want := marked(a, extents)
			for round := range 2 {
				left := bytes.Clone(boolBytes(want))
				stages := [][]Extent{extents[:20], nil, extents[20:]}
				replay(h, stages, func(x Extent, fetched bool) {
					if round > 0 && fetched {
						t.Errorf("%v was fetched twice", x)
					}
					p := make([]byte, x.N)
					if !h.Present(x.Off, x.N) || !h.ReadPresent(p, x.Off) {
						t.Errorf("%v is not present", x)
					}
					if !bytes.Equal(p, a.flat[x.Off:x.Off+x.N]) {
						t.Errorf("%v: wrong bytes", x)
					}
					for i := range p {
						left[x.Off+int64(i)] = 0
					}
				})
				if i := bytes.IndexFunc(left, func(r rune) bool { return r != 0 }); i >= 0 {
					t.Errorf("round %d: byte %d was not told of", round, i)
				}
			}
			if n := c.Counts(); n.Reads != 0 || n.Misses != 0 {
				t.Errorf("%d reads and %d misses were counted", n.Reads, n.Misses)
			}
		})
	}
}

func boolBytes(b []bool) []byte {
	out := make([]byte, len(b))
	for i := range b {
		if b[i] {
			out[i] = 1
		}
	}
	return out
}

// A replay that cannot have its bytes ends with its context, leaves out what
// the registry does not have, and ends with its file.
func TestReplayWithoutBytes(t *testing.T) {
	src := &fakeSource{gate: make(chan struct{})}
	a := makeFile(t, newRand(t), src, kinds[1], 1<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	all := [][]Extent{{{0, a.file.Size()}}}
	none := func(x Extent, _ bool) { t.Errorf("%v came", x) }
	ctx, cancel := context.WithCancel(context.Background())
	first := h.Replay(ctx, all, none)
	first.Next()
	cancel()
	<-first.Done()
	second := h.Replay(context.Background(), all, none)
	second.Next()
	h.entry.shut()
	<-second.Done()
	replay(h, all, none)
	close(src.gate)

	gone := &fakeSource{}
	b := makeFile(t, newRand(t), gone, kinds[1], 1<<20)
	clear(gone.blobs)
	h = openFile(t, openCache(t, t.TempDir(), Options{}), b.file, gone)
	replay(h, [][]Extent{{{0, b.file.Size()}}}, none)
	if h.ReadPresent(make([]byte, 4096), b.file.Map.Segments()[0].Offset) || h.ReadPresent(nil, -1) || h.ReadPresent(make([]byte, 1), b.file.Size()) {
		t.Error("what is missing was read")
	}
}

// A reader that waits for the last piece of a replay is served before it, and
// both have fetched it once.
func TestDemandOvertakesReplay(t *testing.T) {
	src := &recording{fakeSource: &fakeSource{gate: make(chan struct{}, 100)}}
	a := makeFile(t, newRand(t), src.fakeSource, kinds[1], 24<<20)
	src.gate <- struct{}{} // the request that finds out about ranges
	h := openFile(t, openCache(t, t.TempDir(), Options{Concurrency: 8}), a.file, src)
	checkRead(t, h, a.flat, int(a.file.Map.Segments()[0].Offset), 1)
	r := h.Replay(context.Background(), [][]Extent{{{0, a.file.Size()}}}, func(Extent, bool) {})
	r.Next()
	eventually(t, "the replay runs", func() bool { return src.furthest() > 0 })
	last := a.file.Map.Segments()[a.file.Map.Len()-1]
	piece, _ := h.entry.grid.Extent(h.entry.grid.At(a.file.Map.PayloadAt(last.Offset)))
	if src.furthest() >= piece {
		t.Fatal("the replay is at the end already")
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		checkRead(t, h, a.flat, int(last.Offset), 1)
	}()
	eventually(t, "the read has a request of its own", func() bool { return src.furthest() >= piece })
	close(src.gate)
	<-read
	<-r.Done()
	if _, fetched := src.reset(); fetched > a.file.StoredSize() {
		t.Errorf("%d bytes were fetched of %d", fetched, a.file.StoredSize())
	}
}

// Runs that lie near each other come together, in the first of their stages.
func TestReplayJoins(t *testing.T) {
	src, rng, data := &fakeSource{}, newRand(t), make([]byte, 4<<20)
	fillRandom(rng, data)
	file := &layout.File{Name: "x", Map: sparse.Dense(int64(len(data)))} // a hole would make a granule smaller
	packedtest.Pack(rng, file, data, packed.MinGranule, src.put)
	e := openFile(t, openCache(t, t.TempDir(), Options{}), file, src).entry
	gap := int(replayGap / file.Index.Head.Granule)
	most := int(replayMost / file.Index.Head.Granule)
	pieces := []int{0, 1, 2 + gap, 4 + 2*gap, 5 + 2*gap, most + 1, most + 2}
	got := e.staged(pieces, map[int]int{0: 1, 1: 1, 2 + gap: 0, 4 + 2*gap: 2, 5 + 2*gap: 3, most + 1: 3, most + 2: 1}, 4)
	if want := "[[0 1 2] [5 6] [3 4] []]"; fmt.Sprint(indexes(pieces, got)) != want {
		t.Errorf("%v, want %s", indexes(pieces, got), want)
	}
	spans := e.nearby([]int{0, 1, 2 + gap, 4 + 2*gap})
	if len(spans) != 2 || spans[0].from != 0 || spans[0].to != 3+gap || spans[1].from != 4+2*gap || spans[1].to != 5+2*gap {
		t.Errorf("%+v", spans)
	}
}

// indexes returns where the numbers of lists stand in all.
func indexes(all []int, lists [][]int) [][]int {
	out := make([][]int, len(lists))
	for i, list := range lists {
		for _, n := range list {
			out[i] = append(out[i], slices.Index(all, n))
		}
	}
	return out
}
