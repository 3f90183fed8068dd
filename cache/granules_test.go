package cache

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

var granuleEncoder = sync.OnceValue(func() *zstdframe.Encoder {
	enc, err := zstdframe.NewEncoder(1, 1)
	if err != nil {
		panic(err)
	}
	return enc
})

// storePacked stores a payload in granules and makes f a packed file of
// it. Some granules are not where they would be in order, as in an artifact
// with a base.
func storePacked(t testing.TB, rng *rand.Rand, src *fakeSource, f *layout.File, data []byte) {
	t.Helper()
	const granule = packed.MinGranule
	slots := packed.NewSlots(f.Map, granule)
	packs := make([][]byte, 3)
	all := make([]packed.Granule, slots.Granules())
	w := packed.NewWriter(granule, granuleEncoder())
	for i := range all {
		off, n := slots.Extent(i)
		g := &all[i]
		if g.Pack = 2 * i / len(all); rng.IntN(8) == 0 {
			g.Pack = 2
		}
		frame := granuleEncoder().Encode(nil, data[off:off+n])
		g.Offset, g.Stored, g.Sum = int64(len(packs[g.Pack])), int64(len(frame)), sha256.Sum256(data[off:off+n])
		packs[g.Pack] = append(packs[g.Pack], frame...)
	}
	// Packs without a granule are none.
	number := make([]int, len(packs))
	var named []packed.Pack
	for i, p := range packs {
		if number[i] = len(named); len(p) > 0 {
			src.put(p)
			named = append(named, packed.Pack{Digest: sha256.Sum256(p), Size: int64(len(p))})
		}
	}
	for i, g := range all {
		g.Pack = number[g.Pack]
		if err := w.Add(slots.Slot(i), g); err != nil {
			t.Fatal(err)
		}
	}
	index, head, err := w.Finish(f.Map, named)
	if err != nil {
		t.Fatal(err)
	}
	h, err := packed.ReadHead(index[len(index)-head:], packed.File{
		Size: f.Size(), Data: int64(len(data)), Granule: granule, Frames: int64(len(index) - head),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Index = layout.NewIndex(fmt.Sprintf("sha256:%x", sha256.Sum256(index)), int64(len(index)), h,
		func(_ context.Context, off, n int64, _ packed.Sum) ([]byte, error) { return index[off : off+n], nil })
	f.Parts = []layout.Part{f.Index.Part()}
}
