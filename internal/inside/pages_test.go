package inside

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// recorded notes what is read of it.
type recorded struct {
	*memory
	mu    sync.Mutex
	spans []span
}

func (r *recorded) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	r.mu.Lock()
	r.spans = append(r.spans, span{off / PageSize, (off + int64(len(p)) + PageSize - 1) / PageSize})
	r.mu.Unlock()
	return r.memory.ReadAt(ctx, p, off)
}

func (r *recorded) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return r.ReadAt(ctx, p, off)
}

func (r *recorded) take() []span {
	r.mu.Lock()
	defer r.mu.Unlock()
	spans := r.spans
	r.spans = nil
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	return spans
}

func newRecorded(size int) *recorded {
	r := &recorded{memory: &memory{data: make([]byte, size)}}
	rng := rand.NewChaCha8([32]byte{7})
	_, _ = rng.Read(r.data) // never fails
	return r
}

func TestPagesJoin(t *testing.T) {
	t.Parallel()
	src := newRecorded(1000*PageSize + 5)
	g := newPages(src)
	read := func(from, to int64) []span {
		t.Helper()
		p := make([]byte, (to-from)*PageSize)
		if err := g.ReadAt(t.Context(), p, from*PageSize); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, src.data[from*PageSize:to*PageSize]) {
			t.Fatalf("pages %d to %d are wrong", from, to)
		}
		return src.take()
	}
	for _, step := range []struct {
		from, to int64
		want     []span
	}{
		{10, 14, []span{{10, 14}}},               // neighbours in one read
		{10, 14, nil},                            // they are there
		{8, 16, []span{{8, 16}}},                 // those few are not worth two reads
		{100, 160, []span{{100, 160}}},           // many
		{90, 170, []span{{90, 100}, {160, 170}}}, // around what is there
		{300, 301, []span{{300, 301}}},           // elsewhere: nothing is read ahead
		{301, 302, []span{{301, 306}}},           // the next one: four pages more
		{306, 307, []span{{306, 315}}},           // and again: eight
		{315, 316, []span{{315, 332}}},           // sixteen
		{600, 601, []span{{600, 601}}},           // elsewhere
		{999, 1000, []span{{999, 1000}}},         // near the end
		{599, 603, []span{{599, 603}}},           // one page that is there
	} {
		if got := read(step.from, step.to); !slices.Equal(got, step.want) {
			t.Errorf("pages %d to %d: read %v, want %v", step.from, step.to, got, step.want)
		}
	}
}

func TestPagesPrefetch(t *testing.T) {
	t.Parallel()
	const limit = 64
	src := newRecorded(3 * limit * PageSize / 2)
	g := newPages(src)
	g.limit = limit
	g.Prefetch(t.Context(), []span{{60 * PageSize, 60*PageSize + 1}, {0, 10}, {PageSize, PageSize + 3}, {3*PageSize + 9, 3*PageSize + 10}, {0, 5}})
	if got, want := src.take(), []span{{0, 4}, {60, 61}}; !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	g.Prefetch(t.Context(), []span{{0, 4 * PageSize}})
	if got := src.take(); got != nil {
		t.Errorf("read %v again", got)
	}
	// A hint for all of an image must not push out all that is there.
	g.Prefetch(t.Context(), []span{{0, src.Size()}})
	var pages int64
	for _, s := range src.take() {
		pages += s.to - s.from
	}
	if pages == 0 || pages > limit/2 || len(g.have) > limit {
		t.Errorf("%d pages were read, %d are there", pages, len(g.have))
	}
}

// TestPagesAreBounded reads more than is kept, in any order.
func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	const limit = 64 // at least what is read at once
	src := newRecorded(2*limit*PageSize + 77)
	g := newPages(src)
	g.limit = limit
	rng := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		off := rng.Int64N(src.Size())
		p := make([]byte, min(rng.Int64N(3*PageSize), src.Size()-off))
		if err := g.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, src.data[off:off+int64(len(p))]) {
			t.Fatalf("%d bytes at %d are wrong", len(p), off)
		}
	}
	if len(g.have) != g.order.Len() || len(g.have) > limit {
		t.Errorf("%d pages are kept", len(g.have))
	}
	if err := g.ReadAt(t.Context(), make([]byte, 2), src.Size()-1); err == nil {
		t.Error("a read beyond the end")
	}
}
