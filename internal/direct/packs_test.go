package direct

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// A pack that is too large to be held comes once too, and is not held. With a
// base in between, each pack that takes turns does.
func TestLargePacksPass(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		s := newStock(t)
		s.packed(5<<20 + 3)
		s.src.noRange = true
		var flaws int64
		if fails {
			s.src.fail = func(n, _ int64) (f fault) {
				switch n {
				case 2:
					f.err = errors.New("later")
				case 3:
					f.flip, f.at = true, 100_000
					flaws++
				}
				return f
			}
		}
		held := 0
		d := New(s.src, s.files, Options{Memory: LeastMemory, held: 64 << 10, Tardy: 10 * time.Second})
		r, err := d.OpenPayload(t.Context(), s.files[0])
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, s.want[0]) {
			t.Fatalf("%d bytes, error %v", len(got), err)
		}
		for _, p := range d.packs.held {
			held += len(p.data)
		}
		if held > 0 {
			t.Errorf("%d bytes of packs are held", held)
		}
		if err := errors.Join(r.Close(), d.Close()); err != nil {
			t.Error(err)
		}
		// The first request finds out, and what comes unread stays in buffers.
		most := s.stored() + 1<<20
		if fails {
			most += s.stored()
		}
		if got := s.src.sent.Load(); got > most {
			t.Errorf("%d bytes were sent, of %d that are stored", got, s.stored())
		}
		if s.src.open > 0 {
			t.Errorf("%d bodies are open", s.src.open)
		}
	}
}

// shared is a Cache that has some granules, and counts those that it is given.
type shared struct {
	Store
	here  func(off int64) []byte // the granule there, or nil
	keeps bool

	mu      sync.Mutex
	kept    int
	claimed int
}

func (k *shared) Part(int) io.Reader                   { return nil }
func (k *shared) Keeps() bool                          { return k.keeps }
func (k *shared) Grain(int) int64                      { return packed.MinGranule }
func (k *shared) Own(int) (func(), bool)               { return nil, false }
func (k *shared) Vouch(int)                            {}
func (k *shared) Drop(int)                             {}
func (k *shared) Here(_ int, off, n int64) bool        { return int64(len(k.here(off))) == n }
func (k *shared) Load(_ int, off int64, p []byte) bool { return copy(p, k.here(off)) == len(p) }

func (k *shared) Claim(context.Context, int, int64, int64) (func(), error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claimed++
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.claimed--
	}, nil
}

func (k *shared) Keep(_ int, _ int64, _ []byte, verified bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if verified {
		k.kept++
	}
}

// Of a unit some of which is there, only the rest is fetched and kept.
func TestGranulesThatAreThere(t *testing.T) {
	t.Parallel()
	for _, keeps := range []bool{false, true} {
		s := newStock(t)
		s.packed(5<<20 + 3)
		x := s.files[0].Index
		there, fetched := map[int64][]byte{}, int64(0)
		for i := range x.Granules() {
			off, n := x.Extent(i)
			if i%64 > 40 {
				g, err := x.Granule(t.Context(), i)
				if err != nil {
					t.Fatal(err)
				}
				fetched += g.Stored
			} else {
				there[off] = s.want[0][off : off+n]
			}
		}
		k := &shared{keeps: keeps, here: func(off int64) []byte { return there[off] }}
		s.src.fail = func(int64, int64) (f fault) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if (k.claimed > 0) != keeps {
				t.Errorf("%d claims while bytes are fetched", k.claimed)
			}
			return f
		}
		if err := s.read(Options{Memory: LeastMemory, Concurrency: 1, Store: func(int) Store { return k }}); err != nil {
			t.Fatal(err)
		}
		if want := x.Granules() - len(there); k.kept != want || k.claimed != 0 {
			t.Errorf("%d of %d granules were kept, %d claims are left", k.kept, want, k.claimed)
		}
		// Some come along where that is less than a request of their own.
		if got := s.src.sent.Load(); got < fetched || got > fetched*5/4 {
			t.Errorf("%d bytes were sent, of %d that are missing", got, fetched)
		}
	}
}

// From a registry that ignores ranges every pack comes once, also the one
// of the very first request, while others ask for the same.
func TestPacksComeOnceWithoutRanges(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		for range 4 {
			s := newStock(t)
			s.packed(5<<20 + 3)
			s.src.noRange = true
			if fails {
				s.src.fail = func(n, _ int64) (f fault) {
					if n == 1 {
						f.err = errors.New("later")
					}
					return f
				}
			}
			if err := s.read(Options{Concurrency: 8, Memory: LeastMemory}); err != nil {
				t.Fatal(err)
			}
			if got := s.src.sent.Load(); got != s.stored() {
				t.Fatalf("%d bytes were sent, not %d", got, s.stored())
			}
		}
	}
}
