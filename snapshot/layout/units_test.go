package layout

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// stored makes a file of its bytes: cut into parts of chunk bytes, or one part
// with digests of pieces, with holes where 4 KiB are zeros.
func stored(t *testing.T, data []byte, chunk, piece int64) *File {
	t.Helper()
	var segs []sparse.Segment
	var payload []byte
	for off := 0; off < len(data); off += 4096 {
		block := data[off:min(off+4096, len(data))]
		if bytes.Count(block, []byte{0}) != len(block) {
			segs = append(segs, sparse.Segment{Offset: int64(off), Length: int64(len(block))})
			payload = append(payload, block...)
		}
	}
	m, err := sparse.New(segs, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	f := &File{Name: "disk.raw", Map: m}
	for off := int64(0); off < int64(len(payload)); off += chunk {
		part := payload[off:min(off+chunk, int64(len(payload)))]
		sum := sha256.Sum256(part)
		p := Part{Digest: digests.Format(sum), StoredSize: int64(len(part)), Offset: off, Length: int64(len(part))}
		if piece > 0 {
			p.Pieces = &Pieces{Size: piece}
			for at := int64(0); at < p.Length; at += piece {
				sum := sha256.Sum256(part[at:min(at+piece, p.Length)])
				p.Pieces.Sums = append(p.Pieces.Sums, sum[:]...)
			}
		}
		f.Parts = append(f.Parts, p)
	}
	return f
}

func differing(t *testing.T, a, b *File) []sparse.Segment {
	t.Helper()
	ranges, err := Differing(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	return ranges
}

// TestDiffering changes random files at random places: outside of what is
// returned they must be equal, and what is returned must not be much more than
// what was changed.
func TestDiffering(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		a := make([]byte, 4096*(1+rng.IntN(40)))
		for off := 0; off < len(a); off += 4096 {
			if rng.IntN(4) > 0 {
				a[off+rng.IntN(4096)] = byte(1 + rng.IntN(3)) // many blocks are alike
			}
		}
		b := bytes.Clone(a)
		for range rng.IntN(3) {
			b[rng.IntN(len(b))] ^= 7
		}
		b = append(b[:len(b)-rng.IntN(2)*rng.IntN(len(b))], make([]byte, rng.IntN(2)*8192)...)
		chunk, piece := int64(4096*(1+rng.IntN(3))), int64(0)
		if rng.IntN(2) == 0 {
			chunk, piece = 1<<30, 4096*int64(1+rng.IntN(2))
		}
		ranges := differing(t, stored(t, a, chunk, piece), stored(t, b, chunk, piece))
		at := func(data []byte, i int64) (byte, bool) {
			if i < int64(len(data)) {
				return data[i], true
			}
			return 0, false
		}
		next := int64(0)
		check := func(to int64) {
			for ; next < to; next++ {
				x, inA := at(a, next)
				y, inB := at(b, next)
				if x != y || inA != inB {
					t.Fatalf("case %d: byte %d differs, and is not in %v", n, next, ranges)
				}
			}
		}
		for k, r := range ranges {
			if r.Length <= 0 || r.Offset < next || k > 0 && r.Offset == next {
				t.Fatalf("case %d: %v", n, ranges)
			}
			check(r.Offset)
			next = r.Offset + r.Length
		}
		check(int64(max(len(a), len(b))))
		if bytes.Equal(a, b) && ranges != nil {
			t.Fatalf("case %d: equal files differ in %v", n, ranges)
		}
	}
}

// TestDifferingIsSmall changes one byte of a file without holes.
func TestDifferingIsSmall(t *testing.T) {
	t.Parallel()
	a := bytes.Repeat([]byte{1}, 1<<20)
	b := bytes.Clone(a)
	b[600_000] = 2
	for _, form := range [][2]int64{{65536, 0}, {1 << 30, 65536}} {
		got := differing(t, stored(t, a, form[0], form[1]), stored(t, b, form[0], form[1]))
		if len(got) != 1 || got[0] != (sparse.Segment{Offset: 589824, Length: 65536}) {
			t.Errorf("%v: %v", form, got)
		}
	}
	// In one piece: nothing smaller is known.
	if got := differing(t, stored(t, a, 1<<30, 0), stored(t, b, 1<<30, 0)); len(got) != 1 || got[0] != (sparse.Segment{Length: 1 << 20}) {
		t.Errorf("%v", got)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte{1}, 100_000)
	for _, form := range [][2]int64{{65536, 0}, {1 << 30, 65536}, {50_000, 4096}} {
		end := int64(0)
		for u, err := range stored(t, data, form[0], form[1]).Units(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(data[u.Offset : u.Offset+u.Length])
			if u.Offset != end || u.Digest != digests.Format(sum) {
				t.Errorf("%v: %+v after %d", form, u, end)
			}
			end += u.Length
		}
		if end != int64(len(data)) {
			t.Errorf("%v: the units end at %d", form, end)
		}
	}
}
