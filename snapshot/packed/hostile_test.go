package packed

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// small is the plain head of a file of three granules in one pack.
func small(t testing.TB) (plain []byte, f File) {
	t.Helper()
	x := makeIndex(t, rand.New(rand.NewPCG(1, 2)), sparse.Dense(3*MinGranule), MinGranule)
	plain, err := decode(x.headFrame(), MaxHead)
	if err != nil {
		t.Fatal(err)
	}
	return plain, x.file
}

func TestHostileHeads(t *testing.T) {
	t.Parallel()
	put32 := func(at int, v uint32) func(b []byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	put64 := func(at int, v uint64) func(b []byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], v); return b }
	}
	const ref = headFixed + packBytes // of the only section
	for name, change := range map[string]func(b []byte) []byte{
		"empty":                 func([]byte) []byte { return nil },
		"cut":                   func(b []byte) []byte { return b[:len(b)-1] },
		"longer":                func(b []byte) []byte { return append(b, 0) },
		"magic":                 put32(0, 0),
		"version":               put32(8, 2),
		"granule":               put32(12, MinGranule+1),
		"other granule":         put32(12, 2*MinGranule),
		"size":                  put64(16, 1<<60),
		"data":                  put64(24, 3*MinGranule-1),
		"no packs":              put32(32, 0),
		"packs":                 put32(32, 1<<31),
		"no sections":           put32(36, 0),
		"sections":              put32(36, 1<<31),
		"segments":              put64(40, 1<<62),
		"segments overflow":     put64(40, 1<<63),
		"an empty pack":         put64(headFixed+32, 0),
		"a large pack":          put64(headFixed+32, 1<<32),
		"another section":       put32(ref, 7),
		"too few granules":      put32(ref+4, 2),
		"too many granules":     put32(ref+4, SectionSlots+1),
		"no bytes stored":       put32(ref+8, 0),
		"many bytes stored":     put32(ref+8, 1<<31),
		"many bytes decoded":    put32(ref+12, 1<<31),
		"a segment too long":    func(b []byte) []byte { b[len(b)-1] = 0x7f; return b },
		"an endless number":     func(b []byte) []byte { b[len(b)-1] |= 0x80; return b },
		"a segment of no bytes": func(b []byte) []byte { return append(b[:len(b)-3], 0, 0) },
	} {
		plain, f := small(t)
		if _, err := decodeHead(plain, f); err != nil {
			t.Fatal(err)
		}
		if h, err := decodeHead(change(bytes.Clone(plain)), f); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

func TestPackListedTwice(t *testing.T) {
	t.Parallel()
	h := &Head{Granule: MinGranule, Map: sparse.Dense(0), Packs: []Pack{{Size: 1}, {Size: 2}}}
	if _, err := decodeHead(h.encode(), File{Granule: MinGranule}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestHostileSections(t *testing.T) {
	t.Parallel()
	a, b := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	h := &Head{Granule: MinGranule, Map: sparse.Dense(2*MinGranule + 1), Packs: []Pack{{Size: 100}, {Digest: a, Size: 200}}}
	good := []Granule{{0, 0, 50, a}, {0, 50, 50, b}, {1, 0, 10, sha256.Sum256(nil)}}
	for name, granules := range map[string][]Granule{
		"good":                    good,
		"repeated":                {good[0], good[0], good[2]},
		"unknown pack":            {good[0], {2, 0, 1, b}, good[2]},
		"pack before the first":   {{-1, 0, 1, a}, good[1], good[2]},
		"beyond the pack":         {good[0], {0, 51, 50, b}, good[2]},
		"before the pack":         {{0, -1, 50, a}, good[1], good[2]},
		"far":                     {{0, 1<<32 - 1, 1, a}, good[1], good[2]},
		"nothing stored":          {good[0], {0, 50, 0, b}, good[2]},
		"much stored":             {good[0], good[1], {1, 0, MaxStored(MinGranule) + 1, b}},
		"overlap":                 {good[0], {0, 49, 50, b}, good[2]},
		"one frame, two sums":     {good[0], {0, 0, 50, b}, good[2]},
		"one start, two lengths":  {good[0], {0, 0, 49, a}, good[2]},
		"one sum, two lengths":    {good[0], good[1], {1, 0, 10, a}},
		"other frames of one sum": {good[0], {0, 50, 50, a}, good[2]},
	} {
		s := &Section{}
		s.hold(h.Map, h.Granule)
		for _, g := range granules {
			s.add(g)
		}
		plain := s.encode()
		got, err := decodeSection(plain, h, SectionRef{Granules: 3, Length: int64(len(plain))})
		if fine := name == "good" || name == "repeated" || name == "other frames of one sum"; fine {
			if err != nil || got.at(0) != granules[0] || got.at(1) != granules[1] || got.at(2) != granules[2] {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An index that no reader would take is not written, whatever the base says
// of its granules.
func TestWriterRefusesWhatReadersDo(t *testing.T) {
	t.Parallel()
	a, b := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	for name, granules := range map[string][2]Granule{
		"good":            {{0, 0, 50, a}, {0, 50, 50, b}},
		"overlap":         {{0, 0, 50, a}, {0, 49, 50, b}},
		"large frame":     {{0, 0, 50, a}, {0, 50, MaxStored(MinGranule) + 1, b}},
		"beyond the pack": {{0, 0, 50, a}, {0, 1 << 20, 50, b}},
	} {
		w := NewWriter(MinGranule, encoder(t))
		for i, g := range granules {
			if err := w.Add(int64(i), g); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := w.Finish(sparse.Dense(2*MinGranule), []Pack{{Digest: a, Size: 1 << 20}})
		if (name == "good") != (err == nil) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Frames of an index that were changed or cut are wrong content.
func TestWrongFrames(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 3))
	x := makeIndex(t, r, randomMap(t, r, 64<<20), MinGranule)
	h, err := ReadHead(x.headFrame(), x.file)
	if err != nil {
		t.Fatal(err)
	}
	ref := h.Sections[0]
	frame := x.index[:ref.Stored]
	flipped := bytes.Clone(frame)
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{"cut": frame[:len(frame)-1], "flipped": flipped, "empty": nil} {
		if _, err := ReadSection(b, h, ref); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := ref
	large.Length++
	if _, err := ReadSection(frame, h, large); !errors.Is(err, ErrInvalid) {
		t.Errorf("a length that lies: %v", err)
	}
	if _, err := ReadHead(x.headFrame()[:x.head-1], x.file); !errors.Is(err, ErrInvalid) {
		t.Errorf("a head that is cut: %v", err)
	}
	// A frame that says it holds more than a head may.
	huge := append(binary.LittleEndian.AppendUint32(nil, 0xFD2FB528), 0xe0)
	huge = binary.LittleEndian.AppendUint64(huge, MaxHead+1)
	if _, err := ReadHead(huge, x.file); !errors.Is(err, ErrInvalid) {
		t.Errorf("a huge head: %v", err)
	}
}

func FuzzHead(f *testing.F) {
	plain, file := small(f)
	f.Add(plain, file.Size, file.Data, file.Granule, file.Frames)
	f.Fuzz(func(t *testing.T, plain []byte, size, data, granule, frames int64) {
		h, err := decodeHead(plain, File{Size: size, Data: data, Granule: granule, Frames: frames})
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := decodeHead(h.encode(), File{Size: size, Data: data, Granule: granule, Frames: frames})
		if err != nil || again.Map.Text() != h.Map.Text() || len(again.Sections) != len(h.Sections) {
			t.Fatalf("a head that was read cannot be written: %v", err)
		}
	})
}

func FuzzSection(f *testing.F) {
	a := sha256.Sum256([]byte("a"))
	s := &Section{}
	s.add(Granule{0, 0, 50, a})
	s.add(Granule{1, 7, 50, sha256.Sum256([]byte("b"))})
	f.Add(s.encode(), int64(2*MinGranule))
	f.Fuzz(func(t *testing.T, plain []byte, size int64) {
		if size < 1 || size > SectionSlots*MinGranule {
			return
		}
		h := &Head{Granule: MinGranule, Map: sparse.Dense(size), Packs: []Pack{{Size: 100}, {Digest: a, Size: MaxPackSize}}}
		ref := SectionRef{Granules: int(h.Slots()), Length: int64(len(plain))}
		s, err := decodeSection(plain, h, ref)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, g := range s.All() {
			if g.Offset+g.Stored > h.Packs[g.Pack].Size {
				t.Fatalf("%+v lies outside of its pack", g)
			}
		}
	})
}
