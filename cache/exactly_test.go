package cache

import (
	"bytes"
	"testing"
)

// TestReadExactly reads in strides and in a row, as a reader of a file
// system's metadata does: nothing is fetched but the pieces that it reads.
func TestReadExactly(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 32<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	wanted := map[int]bool{}
	read := func(off int64) {
		t.Helper()
		p := make([]byte, 4096)
		if n, err := h.ReadExactly(t.Context(), p, off); n != len(p) || err != nil || !bytes.Equal(p, a.flat[off:off+4096]) {
			t.Fatalf("%d bytes at %d, %v", n, off, err)
		}
		g := h.entry.grid
		from, to := a.file.Map.PayloadAt(off), a.file.Map.PayloadAt(off+4096)
		if from < to {
			for i := g.At(from); i <= g.At(to-1); i++ {
				wanted[i] = true
			}
		}
	}
	size := a.file.Size()
	for i := range int64(30) {
		read(i * size / 80)
	}
	for i := range int64(600) {
		read(size/2 + i*4096)
	}
	var want int64
	for i := range wanted {
		_, n := h.entry.grid.Extent(i)
		want += n
	}
	if _, fetched := src.reset(); fetched > want {
		t.Errorf("%d bytes were fetched for pieces of %d", fetched, want)
	}
}
