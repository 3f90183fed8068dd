// Package packedtest makes packed files for tests.
package packedtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"

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

// Pack makes f, which has its map, a packed file of the given payload, and
// has its packs put where they are read from. Some granules are not where
// they would be in order, as in an artifact with a base. It returns the index.
func Pack(rng *rand.Rand, f *layout.File, payload []byte, granule int64, put func([]byte) string) (index []byte) {
	slots := packed.NewSlots(f.Map, granule)
	packs := make([][]byte, 3)
	all := make([]packed.Granule, slots.Granules())
	for i := range all {
		off, n := slots.Extent(i)
		g := &all[i]
		if g.Pack = 2 * i / len(all); rng.IntN(8) == 0 {
			g.Pack = 2
		}
		frame := granuleEncoder().Encode(nil, payload[off:off+n])
		g.Offset, g.Stored, g.Sum = int64(len(packs[g.Pack])), int64(len(frame)), sha256.Sum256(payload[off:off+n])
		packs[g.Pack] = append(packs[g.Pack], frame...)
	}
	number := make([]int, len(packs)) // packs without a granule are none
	var named []packed.Pack
	for i, p := range packs {
		if number[i] = len(named); len(p) > 0 {
			put(p)
			named = append(named, packed.Pack{Digest: sha256.Sum256(p), Size: int64(len(p))})
		}
	}
	w := packed.NewWriter(granule, granuleEncoder())
	for i, g := range all {
		g.Pack = number[g.Pack]
		if err := w.Add(slots.Slot(i), g); err != nil {
			panic(err)
		}
	}
	index, head, err := w.Finish(f.Map, named)
	if err != nil {
		panic(err)
	}
	h, err := packed.ReadHead(index[len(index)-head:], packed.File{
		Size: f.Size(), Data: int64(len(payload)), Granule: granule, Frames: int64(len(index) - head),
	})
	if err != nil {
		panic(err)
	}
	f.Index = layout.NewIndex(fmt.Sprintf("sha256:%x", sha256.Sum256(index)), int64(len(index)), fmt.Sprintf("sha256:%x", sha256.Sum256(index[len(index)-head:])), h,
		func(_ context.Context, off, n int64, _ packed.Sum) ([]byte, error) { return index[off : off+n], nil })
	f.Parts = []layout.Part{f.Index.Part()}
	return index
}
