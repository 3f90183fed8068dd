package packed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

func encoder(t testing.TB) *zstdframe.Encoder {
	t.Helper()
	enc, err := zstdframe.NewEncoder(3, 1)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

// randomMap makes a map whose segments need not be aligned to anything.
func randomMap(t testing.TB, r *rand.Rand, size int64) *sparse.Map {
	t.Helper()
	var segs []sparse.Segment
	for at := r.Int64N(size / 8); at < size; {
		n := min(1+r.Int64N(size/16), size-at)
		segs = append(segs, sparse.Segment{Offset: at, Length: n})
		at += n
		if r.IntN(3) > 0 { // else the next segment touches this one
			at += 1 + r.Int64N(size/16)
		}
	}
	m, err := sparse.New(segs, size)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// holdsData reports whether a slot has data, by looking at every segment.
func holdsData(m *sparse.Map, granule, slot int64) bool {
	for _, s := range m.Segments() {
		if s.Offset < (slot+1)*granule && s.Offset+s.Length > slot*granule {
			return true
		}
	}
	return false
}

// made is an index, and what is in it.
type made struct {
	index    []byte
	head     int
	file     File
	m        *sparse.Map
	packs    []Pack
	granules map[int64]Granule
}

func (x *made) headFrame() []byte { return x.index[len(x.index)-x.head:] }

func makeIndex(t testing.TB, r *rand.Rand, m *sparse.Map, granule int64) *made {
	t.Helper()
	x := &made{m: m, granules: map[int64]Granule{}}
	w := NewWriter(granule, encoder(t))
	var ends []int64
	for slot := range SlotCount(m.Size(), granule) {
		if !holdsData(m, granule, slot) {
			continue
		}
		if len(ends) == 0 || r.IntN(50) == 0 {
			ends = append(ends, 0)
		}
		pack := r.IntN(len(ends))
		if r.IntN(4) > 0 {
			pack = len(ends) - 1
		}
		g := Granule{Pack: pack, Offset: ends[pack], Stored: 1 + r.Int64N(granule)}
		ends[pack] += g.Stored + r.Int64N(2)*r.Int64N(1000)
		binary.LittleEndian.PutUint64(g.Sum[:], r.Uint64())
		x.granules[slot] = g
		if err := w.Add(slot, g); err != nil {
			t.Fatal(err)
		}
	}
	for i, end := range ends {
		x.packs = append(x.packs, Pack{Digest: sha256.Sum256(fmt.Append(nil, i)), Size: end + 1})
	}
	var err error
	if x.index, x.head, err = w.Finish(m, x.packs); err != nil {
		t.Fatal(err)
	}
	x.file = File{Size: m.Size(), Data: m.DataSize(), Granule: granule, Frames: int64(len(x.index) - x.head)}
	return x
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		m := randomMap(t, r, 1<<20+r.Int64N(300<<20))
		x := makeIndex(t, r, m, MinGranule<<r.IntN(3))
		h, err := ReadHead(x.headFrame(), x.file)
		if err != nil {
			t.Fatal(err)
		}
		if h.Map.Text() != m.Text() || h.Map.Size() != m.Size() {
			t.Fatal("the map has changed")
		}
		if fmt.Sprint(h.Packs) != fmt.Sprint(x.packs) {
			t.Fatal("the packs have changed")
		}
		found := 0
		for number := range int((h.Slots() + SectionSlots - 1) / SectionSlots) {
			ref, ok := h.Section(number)
			if !ok {
				continue
			}
			s, err := ReadSection(x.index[ref.Offset:ref.Offset+ref.Stored], h, ref)
			if err != nil {
				t.Fatal(err)
			}
			for slot, g := range s.All() {
				if one, ok := s.Granule(slot); !ok || one != g || g != x.granules[slot] {
					t.Fatalf("slot %d: %v, %v, %v", slot, one, g, x.granules[slot])
				}
				found++
			}
			for slot := s.first; slot < min(s.first+SectionSlots, h.Slots()); slot++ {
				if _, ok := s.Granule(slot); ok != holdsData(m, x.file.Granule, slot) {
					t.Fatalf("slot %d: %v", slot, ok)
				}
			}
		}
		if found != len(x.granules) {
			t.Fatalf("%d granules of %d", found, len(x.granules))
		}
	}
}

func TestEmptyFile(t *testing.T) {
	t.Parallel()
	m, err := sparse.New(nil, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	x := makeIndex(t, rand.New(rand.NewPCG(1, 1)), m, DefaultGranule)
	h, err := ReadHead(x.headFrame(), x.file)
	if err != nil || len(h.Sections) != 0 || len(h.Packs) != 0 || h.Map.Size() != 1<<30 {
		t.Fatalf("%+v, %v", h, err)
	}
}

// An index takes about 40 bytes a granule, whatever the granules are.
func TestIndexIsSmall(t *testing.T) {
	t.Parallel()
	m := sparse.Dense(1 << 30)
	x := makeIndex(t, rand.New(rand.NewPCG(1, 1)), m, DefaultGranule)
	if perGranule := float64(len(x.index)) / float64(len(x.granules)); perGranule > 42 {
		t.Errorf("%.1f bytes a granule", perGranule)
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	m := sparse.Dense(10 * DefaultGranule)
	good := Granule{Stored: 1}
	for name, add := range map[string]func(w *Writer) error{
		"descending": func(w *Writer) error { return errors.Join(w.Add(1, good), w.Add(0, good)) },
		"repeated":   func(w *Writer) error { return errors.Join(w.Add(1, good), w.Add(1, good)) },
		"empty":      func(w *Writer) error { return w.Add(0, Granule{}) },
		"far":        func(w *Writer) error { return w.Add(0, Granule{Offset: MaxPackSize, Stored: 1}) },
		"too few": func(w *Writer) error {
			_, _, err := w.Finish(m, nil)
			return err
		},
	} {
		if add(NewWriter(DefaultGranule, encoder(t))) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestGranuleFor(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]int64{0: DefaultGranule, 1 << 41: DefaultGranule, 1<<41 + 1: 2 * DefaultGranule, 1 << 46: MaxGranule} {
		if g, err := GranuleFor(size, DefaultGranule); err != nil || g != want {
			t.Errorf("%d bytes: granules of %d, %v", size, g, err)
		}
	}
	if _, err := GranuleFor(sparse.MaxSize, DefaultGranule); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
