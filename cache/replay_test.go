package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"
	"testing"
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

// A replay tells of each byte of data in its extents once, when it can be
// read without the network, over a link that breaks, and of nothing else.
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
				err := h.Replay(context.Background(), extents, func(x Extent, fetched bool) {
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
						left[x.Off+int64(i)]--
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				if i := bytes.IndexFunc(left, func(r rune) bool { return r != 0 }); i >= 0 {
					t.Errorf("round %d: byte %d was told of too often, or not at all", round, i)
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
	all := []Extent{{0, a.file.Size()}}
	none := func(x Extent, _ bool) { t.Errorf("%v came", x) }
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Replay(ctx, all, none); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	done := make(chan error)
	go func() { done <- h.Replay(context.Background(), all, none) }()
	h.entry.stop()
	if err := <-done; !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	close(src.gate)

	gone := &fakeSource{}
	b := makeFile(t, newRand(t), gone, kinds[1], 1<<20)
	clear(gone.blobs)
	h = openFile(t, openCache(t, t.TempDir(), Options{}), b.file, gone)
	if err := h.Replay(context.Background(), []Extent{{0, b.file.Size()}}, none); err != nil {
		t.Errorf("not there: %v", err)
	}
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
	replayed := make(chan error)
	go func() {
		replayed <- h.Replay(context.Background(), []Extent{{0, a.file.Size()}}, func(Extent, bool) {})
	}()
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
	if err := <-replayed; err != nil {
		t.Error(err)
	}
	if _, fetched := src.reset(); fetched > a.file.StoredSize() {
		t.Errorf("%d bytes were fetched of %d", fetched, a.file.StoredSize())
	}
}

// Runs that lie near each other are fetched by one request, others are not.
func TestReplayJoins(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kind{packed: true}, 1<<20)
	e := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src).entry
	size := a.file.Index.Head.Granule
	step := int(replayGap / size)
	got := e.nearby([]int{0, 1, 2 + step, 4 + 2*step})
	if len(got) != 2 || got[0].from != 0 || got[0].to != 3+step || got[1].from != 4+2*step || got[1].to != 5+2*step {
		t.Errorf("%+v", got)
	}
}
