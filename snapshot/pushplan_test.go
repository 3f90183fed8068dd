package snapshot

import "testing"

// A tar that can seek gets the smallest power of two MiB that leaves
// fewer than 2,000 layers; a stream never more than that.
func TestChunkPlan(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		sizes []int64
		want  int64
	}{
		{[]int64{100}, mib},
		{[]int64{1999 * mib}, mib},
		{[]int64{2000 * mib}, 2 * mib},
		{[]int64{1998 * mib, 5}, mib},
		{[]int64{1998 * mib, mib + 1}, 2 * mib},
		{[]int64{8 * gib, 10 * gib, 100}, 16 * mib},
		{[]int64{1 << 42}, 4096 * mib},
	} {
		p := newChunkPlan(0, c.sizes)
		for _, s := range c.sizes {
			if got, err := p.next("x.raw", s, &envelopeConfig{}); got != c.want || err != nil {
				t.Errorf("%v: %d, %v", c.sizes, got, err)
			}
		}
	}
	p := newChunkPlan(0, nil)
	env := &envelopeConfig{Memory: 16 * gib, Storage: 40 * gib}
	for _, f := range []struct {
		name string
		size int64
	}{{"config.json", 100}, {"cow.raw", 40 * gib}, {"memory-ranges", 16 * gib}, {"state.json", 1 << 17}} {
		if _, err := p.next(f.name, f.size, env); err != nil {
			t.Fatal(err)
		}
	}
	if p.layers >= fewLayers || p.layers < fewLayers/4 {
		t.Errorf("%d layers", p.layers)
	}
	if _, err := newChunkPlan(mib, nil).next("x", 8001*mib, env); err == nil {
		t.Error("a manifest of more than 4 MiB")
	}
}

// Buffers of all sizes stay within the memory asked for.
func TestChunkBuffers(t *testing.T) {
	for _, zstd := range []int{0, 3} {
		for _, memory := range []int64{0, 96 << 20, 256 << 20, 1 << 30} {
			c, err := newChunker(t.Context(), nil, &push{opts: &PushOptions{Zstd: zstd, Memory: memory}})
			if err != nil {
				t.Fatal(err)
			}
			for size := int64(1 << 20); size <= 1<<30; size *= 2 {
				raws, frames := c.buffers(size)
				held := int64(raws+frames) * size
				if zstd == 0 {
					held = int64(raws) * size
				}
				most := memory
				if most == 0 {
					most = defaultMemory
				}
				if raws < 0 || (raws == 0) != (frames == 0) || held > most*3/4 {
					t.Errorf("%d bytes of memory, chunks of %d: %d and %d buffers", memory, size, raws, frames)
				}
			}
		}
	}
}
