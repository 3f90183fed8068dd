package cache

import (
	"context"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// TestPrefetch fills a file with nobody reading, over a link that breaks.
func TestPrefetch(t *testing.T) {
	for _, k := range kinds {
		src := &fakeSource{}
		var calls atomic.Int64
		src.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
			if calls.Add(1)%3 == 1 {
				return b[:len(b)/2], errCut
			}
			return b, nil
		}
		a := makeFile(t, newRand(t), src, k, 3<<20)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		h.Prefetch()
		eventually(t, "all is there and sealed", func() bool { _, ok := h.Backing(); return ok })
		src.reset()
		checkRead(t, h, a.flat, 0, len(a.flat))
		if n, _ := src.reset(); n != 0 {
			t.Errorf("%s: %d requests for what was prefetched", k.name, n)
		}
	}
}

// TestDemandOvertakes reads a piece at the end of a file while a prefetch
// holds all connections that it may have: the read has a request of its own.
func TestDemandOvertakes(t *testing.T) {
	src := &recording{fakeSource: &fakeSource{gate: make(chan struct{}, 100)}}
	a := makeFile(t, newRand(t), src.fakeSource, kinds[1], 32<<20)
	src.gate <- struct{}{} // the request that finds out about ranges
	h := openFile(t, openCache(t, t.TempDir(), Options{Concurrency: 8}), a.file, src)
	checkRead(t, h, a.flat, int(a.file.Map.Segments()[0].Offset), 1)
	h.Prefetch()
	eventually(t, "the prefetch runs", func() bool { return src.furthest() > 0 })
	last := a.file.Map.Segments()[a.file.Map.Len()-1]
	piece, _ := h.entry.grid.Extent(h.entry.grid.At(a.file.Map.PayloadAt(last.Offset)))
	if src.furthest() >= piece {
		t.Fatal("the prefetch is at the end already")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		checkRead(t, h, a.flat, int(last.Offset), 1)
	}()
	eventually(t, "the read has a request of its own", func() bool { return src.furthest() >= piece })
	close(src.gate)
	<-done
}

// recording notes where requests begin, before they wait at the gate.
type recording struct {
	*fakeSource
	most atomic.Int64
}

func (r *recording) furthest() int64 { return r.most.Load() }

func (r *recording) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	for seen := r.most.Load(); off > seen && !r.most.CompareAndSwap(seen, off); seen = r.most.Load() {
	}
	return r.fakeSource.OpenBlob(ctx, digest, size, off, n)
}

// TestSlowRequestIsMadeAgain has one request that never answers.
func TestSlowRequestIsMadeAgain(t *testing.T) {
	src := &stuckOnce{fakeSource: &fakeSource{}}
	a := makeFile(t, newRand(t), src.fakeSource, kinds[1], 4<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{Tardy: usual}), a.file, src)
	src.stuck.Store(true)
	checkRead(t, h, a.flat, 0, len(a.flat))
	if src.stuck.Load() {
		t.Error("no request was stuck")
	}
}

type stuckOnce struct {
	*fakeSource
	stuck atomic.Bool
}

func (s *stuckOnce) OpenBlob(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error) {
	if s.stuck.Swap(false) {
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	return s.fakeSource.OpenBlob(ctx, digest, size, off, n)
}

// TestRateLimit bounds what is fetched, not how it is asked for.
func TestRateLimit(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 3<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{LimitRate: 8 << 20}), a.file, src)
	began := time.Now()
	checkRead(t, h, a.flat, 0, len(a.flat))
	if took, least := time.Since(began), 300*time.Millisecond; took < least {
		t.Errorf("3 MiB at 8 MiB/s took %v", took)
	}
}

// TestSequentialReadIsFetchedOnce reads a file from its start in small
// steps, as the kernel does, and counts.
func TestSequentialReadIsFetchedOnce(t *testing.T) {
	for _, k := range kinds[:4] {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, k, 24<<20)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		for off := 0; off < len(a.flat); off += 128 << 10 {
			checkRead(t, h, a.flat, off, 128<<10)
		}
		n, fetched := src.reset()
		if stored := a.file.StoredSize(); fetched > stored {
			t.Errorf("%s: fetched %d bytes of %d", k.name, fetched, stored)
		}
		if most := 24 + 16; n > most {
			t.Errorf("%s: %d requests for 24 MiB", k.name, n)
		}
	}
}

// TestLargeMapReads reads through a map of 30,000 segments.
func TestLargeMapReads(t *testing.T) {
	src := &fakeSource{}
	var segs []sparse.Segment
	var data, flat []byte
	for i := range 30_000 {
		segs = append(segs, sparse.Segment{Offset: int64(i) * 300, Length: 100})
		run := []byte{byte(i), byte(i >> 8), 1}
		for len(run) < 100 {
			run = append(run, run...)
		}
		data = append(data, run[:100]...)
		flat = append(append(flat, run[:100]...), make([]byte, 200)...)
	}
	m, err := sparse.New(segs, int64(len(flat)))
	if err != nil {
		t.Fatal(err)
	}
	a := makeFile(t, newRand(t), src, kinds[0], 1)
	a.file.Map = m
	a.file.Parts[0] = storePart(t, src, kinds[0], data, 0)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	for off := 0; off < len(flat); off += 90_001 {
		checkRead(t, h, flat, off, 50_000)
	}
}

// TestOneProcessor has readers, fetches and streams take turns on one: who
// waits for another without yielding hangs here.
func TestOneProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t.Run("many readers", TestManyReadersOneFetch)
	t.Run("raw pieces and chunks", func(t *testing.T) { readsEqualFlatCopy(t, kinds[:4]) })
}
