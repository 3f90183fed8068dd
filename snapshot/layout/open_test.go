package layout

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

// largeIndex makes the index of a file of 100 GiB in granules of 64 KiB,
// all different.
func largeIndex(tb testing.TB) (index []byte, head int, f packed.File) {
	tb.Helper()
	const size, granule, perPack = 100 << 30, 64 << 10, 4096
	enc, err := zstdframe.NewEncoder(1, 1)
	if err != nil {
		tb.Fatal(err)
	}
	w := packed.NewWriter(granule, enc)
	packs := make([]packed.Pack, size/granule/perPack)
	for slot := range int64(size / granule) {
		var number [8]byte
		binary.LittleEndian.PutUint64(number[:], uint64(slot))
		g := packed.Granule{Pack: int(slot / perPack), Offset: slot % perPack * 20000, Stored: 20000, Sum: sha256.Sum256(number[:])}
		if err := w.Add(slot, g); err != nil {
			tb.Fatal(err)
		}
		packs[g.Pack] = packed.Pack{Digest: sha256.Sum256(number[:]), Size: perPack * 20000}
	}
	index, head, err = w.Finish(sparse.Dense(size), packs)
	if err != nil {
		tb.Fatal(err)
	}
	return index, head, packed.File{Size: size, Data: size, Granule: granule, Frames: int64(len(index) - head)}
}

func openLarge(tb testing.TB, index []byte, head int, f packed.File) *Index {
	h, err := packed.ReadHead(index[len(index)-head:], f)
	if err != nil {
		tb.Fatal(err)
	}
	return NewIndex("sha256:00", int64(len(index)), "sha256:01", h, func(_ context.Context, off, n int64, _ packed.Sum) ([]byte, error) {
		return index[off : off+n], nil
	})
}

// A file of 1.6 million granules takes no memory for those that nobody
// reads, and not much for those that somebody does.
func TestLargeIndexInMemory(t *testing.T) {
	tier.Long(t, "makes the largest index")
	index, head, f := largeIndex(t)
	x := openLarge(t, index, head, f)
	for i := 0; i < x.Granules(); i += 1000 {
		if g, err := x.Granule(t.Context(), i); err != nil || g.Pack != i/4096 {
			t.Fatalf("granule %d: %+v, %v", i, g, err)
		}
	}
	var with, without runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&with)
	runtime.KeepAlive(x)
	x = nil
	runtime.GC()
	runtime.ReadMemStats(&without)
	if n := int64(with.HeapAlloc) - int64(without.HeapAlloc); n > 24<<20 {
		t.Errorf("%d bytes for an index of %d", n, len(index))
	}
}

func BenchmarkOpenLargeIndex(b *testing.B) {
	index, head, f := largeIndex(b)
	b.ReportAllocs()
	for b.Loop() {
		openLarge(b, index, head, f)
	}
	b.ReportMetric(float64(len(index)), "index-bytes")
}

func BenchmarkGranuleOfLargeIndex(b *testing.B) {
	index, head, f := largeIndex(b)
	x := openLarge(b, index, head, f)
	for i := 0; b.Loop(); i++ {
		if _, err := x.Granule(b.Context(), i*7%4096+100000); err != nil {
			b.Fatal(err)
		}
	}
}
