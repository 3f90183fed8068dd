package sparse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustNew(t testing.TB, size int64, segs ...Segment) *Map {
	t.Helper()
	m, err := New(segs, size)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestInvalid(t *testing.T) {
	const big = math.MaxInt64
	for name, c := range map[string]struct {
		text string
		size int64
	}{
		"negative offset":   {`[{"o":-1,"l":4}]`, 16},
		"negative length":   {`[{"o":1,"l":-4}]`, 16},
		"empty segment":     {`[{"o":1,"l":0}]`, 16},
		"missing length":    {`[{"o":1}]`, 16},
		"overlap":           {`[{"o":0,"l":5},{"o":4,"l":4}]`, 16},
		"descending":        {`[{"o":8,"l":4},{"o":0,"l":4}]`, 16},
		"beyond the end":    {`[{"o":12,"l":5}]`, 16},
		"starts beyond":     {`[{"o":17,"l":1}]`, 16},
		"overflowing end":   {fmt.Sprintf(`[{"o":8,"l":%d}]`, int64(big)), 16},
		"overflowing sum":   {fmt.Sprintf(`[{"o":0,"l":%d},{"o":1,"l":%d}]`, int64(big), int64(big)), big},
		"beyond int64":      {`[{"o":0,"l":18446744073709551617}]`, 16},
		"not a whole":       {`[{"o":0,"l":1.5}]`, 16},
		"negative size":     {`[]`, -1},
		"size of 2^62":      {`[{"o":0,"l":4}]`, 1 << 62},
		"no text":           {``, 16},
		"an object":         {`{"o":0,"l":4}`, 16},
		"a string":          {`"[]"`, 16},
		"cut":               {`[{"o":0,"l":4}`, 16},
		"text after":        {`[{"o":0,"l":4}]]`, 16},
		"another after":     {`[{"o":0,"l":4}] []`, 16},
		"leading zero":      {`[{"o":00,"l":4}]`, 16},
		"segment of string": {`[{"o":"0","l":4}]`, 16},
	} {
		if m, err := Parse(c.text, c.size); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestParseForms(t *testing.T) {
	want := []Segment{{0, 4}, {12, 4}}
	for _, text := range []string{
		`[{"o":0,"l":4},{"o":12,"l":4}]`,
		" [ {\"l\":4, \"o\":0},\n{\"o\":12,\"l\":4,\"x\":[{}]} ] ",
	} {
		m, err := Parse(text, 16)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.Segments(), want) || m.DataSize() != 8 || m.Size() != 16 || m.Len() != 2 || m.IsDense() {
			t.Errorf("%s: %+v", text, m)
		}
		if got := m.Text(); got != `[{"o":0,"l":4},{"o":12,"l":4}]` {
			t.Errorf("text %s", got)
		}
	}
	for _, text := range []string{`[]`, `null`, ` [ ] `} {
		m, err := Parse(text, 16)
		if err != nil || m.Len() != 0 || m.DataSize() != 0 || m.SeekHole(3) != 3 || m.Text() != `[]` {
			t.Errorf("%q: %+v, %v", text, m, err)
		}
		if _, ok := m.SeekData(0); ok {
			t.Errorf("%q: data in a hole", text)
		}
	}
}

func TestTooManySegments(t *testing.T) {
	text := "[" + strings.Repeat(`{"l":1},`, MaxSegments) + `{"l":1}]`
	if _, err := Parse(text, MaxSize); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	if _, err := Parse(strings.Repeat(" ", MaxText+1), 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestDense(t *testing.T) {
	for _, size := range []int64{0, 1, MaxSize} {
		m := Dense(size)
		if m.Size() != size || m.DataSize() != size || !m.IsDense() || m.SeekHole(0) != size {
			t.Errorf("%d: %+v", size, m)
		}
	}
	if touching := mustNew(t, 8, Segment{0, 4}, Segment{4, 4}); !touching.IsDense() || touching.SeekHole(1) != 8 {
		t.Errorf("%+v", touching)
	}
}

// flat is a file and what of it is data, byte for byte.
type flat struct {
	file, payload []byte
	data          []bool
}

func randomMap(rng *rand.Rand) (*Map, flat) {
	size := rng.Int64N(300)
	f := flat{file: make([]byte, size), data: make([]bool, size)}
	var segs []Segment
	for at := rng.Int64N(9); at < size; {
		n := 1 + rng.Int64N(min(size-at, 40))
		segs = append(segs, Segment{at, n})
		for i := at; i < at+n; i++ {
			f.file[i] = byte(1 + rng.IntN(255))
			f.data[i] = true
		}
		f.payload = append(f.payload, f.file[at:at+n]...)
		at += n + rng.Int64N(20)*rng.Int64N(2)
	}
	m, err := New(segs, size)
	if err != nil {
		panic(err)
	}
	return m, f
}

func TestRandomAgainstFlatCopy(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		m, f := randomMap(rng)
		checkSeeks(t, m, f)
		for range 20 {
			off := rng.Int64N(m.DataSize()+5) - 2
			checkRuns(t, m, f, off, rng.Int64N(m.DataSize()+5))
		}
		checkRuns(t, m, f, 0, math.MaxInt64)
		checkRuns(t, m, f, 1, math.MaxInt64)
		again, err := Parse(m.Text(), m.Size())
		if err != nil || !slices.Equal(again.Segments(), m.Segments()) {
			t.Fatalf("%s: %v", m.Text(), err)
		}
		if t.Failed() {
			t.Fatalf("map %s of %d", m.Text(), m.Size())
		}
	}
}

func checkSeeks(t *testing.T, m *Map, f flat) {
	t.Helper()
	var before int64
	for off := range m.Size() {
		if got := m.PayloadAt(off); got != before {
			t.Errorf("PayloadAt(%d) = %d, want %d", off, got, before)
		}
		if f.data[off] {
			before++
		}
		data := int64(slices.Index(f.data[off:], true))
		if got, ok := m.SeekData(off); ok != (data >= 0) || ok && got != off+data {
			t.Errorf("SeekData(%d) = %d, %v", off, got, ok)
		}
		hole := int64(slices.Index(f.data[off:], false))
		if hole < 0 {
			hole = m.Size() - off
		}
		if got := m.SeekHole(off); got != off+hole {
			t.Errorf("SeekHole(%d) = %d, want %d", off, got, off+hole)
		}
	}
	for _, off := range []int64{m.Size(), m.Size() + 7, math.MaxInt64} {
		if m.PayloadAt(off) != m.DataSize() || m.SeekHole(off) != m.Size() {
			t.Errorf("at %d: %d, %d", off, m.PayloadAt(off), m.SeekHole(off))
		}
	}
	if m.PayloadAt(-3) != 0 {
		t.Errorf("PayloadAt(-3) = %d", m.PayloadAt(-3))
	}
}

func checkRuns(t *testing.T, m *Map, f flat, off, n int64) {
	t.Helper()
	from := max(off, 0)
	to := m.DataSize()
	if n < to-off {
		to = off + n
	}
	var got []byte
	at := from
	for r := range m.Payload(off, n) {
		if r.Payload != at || r.Length <= 0 {
			t.Errorf("Payload(%d,%d): %+v, want payload offset %d", off, n, r, at)
			return
		}
		got = append(got, f.file[r.Offset:r.Offset+r.Length]...)
		at += r.Length
	}
	if from < to && !bytes.Equal(got, f.payload[from:to]) || from >= to && len(got) != 0 {
		t.Errorf("Payload(%d,%d): %d bytes, want [%d,%d)", off, n, len(got), from, to)
	}
}

func TestPayloadStopsEarly(t *testing.T) {
	m := mustNew(t, 16, Segment{0, 4}, Segment{12, 4})
	for r := range m.Payload(0, 8) {
		if r != (Run{0, 0, 4}) {
			t.Errorf("%+v", r)
		}
		break
	}
}

// manySegments is a map as fragmented as the worst that were seen.
func manySegments(n int) []Segment {
	segs := make([]Segment, n)
	for i := range segs {
		segs[i] = Segment{int64(i)*12288 + 1, 4096}
	}
	return segs
}

// Growing the map a thousandfold must add a few steps to a lookup, not
// multiply them. Lookups are timed against each other within one process
// with a wide margin: a linear one would be hundreds of times slower.
func TestLookupIsLogarithmic(t *testing.T) {
	cost := func(n int) time.Duration {
		m := mustNew(t, int64(n)*12288, manySegments(n)...)
		best := time.Duration(math.MaxInt64)
		for range 5 {
			start := time.Now()
			for i := range int64(20000) {
				off := (i * 7919 * 12288) % m.Size()
				for range m.Payload(m.PayloadAt(off), 1) {
				}
				m.SeekData(off)
				m.SeekHole(off)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	small, large := cost(30), cost(30000)
	if large > 200*small {
		t.Errorf("30 segments: %v, 30,000: %v", small, large)
	}
}

func BenchmarkParse(b *testing.B) {
	text := mustNew(b, 30000*12288, manySegments(30000)...).Text()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(text, 30000*12288); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	m := mustNew(b, 30000*12288, manySegments(30000)...)
	var i int64
	for b.Loop() {
		i++
		off := (i * 7919 * 12288) % m.Size()
		for range m.Payload(m.PayloadAt(off), 4096) {
		}
	}
}

// FuzzParse compares the reader of maps with a naive one: decode all,
// mark bytes. Sizes are kept small so that the naive one can.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`[]`, `null`, `[{"o":0,"l":4},{"o":12,"l":4}]`, `[{"l":4,"o":0}]`, `[{"o":00,"l":4}]`,
		`[{"o":8,"l":4},{"o":0,"l":4}]`, `[{"o":0,"l":9223372036854775807}]`, `[{"o":-1,"l":4}] x`,
	} {
		f.Add(s, int64(16))
	}
	f.Fuzz(func(t *testing.T, text string, size int64) {
		size &= 4095
		m, err := Parse(text, size)
		want, ok := naive(text, size)
		if ok != (err == nil) {
			t.Fatalf("Parse: %v, naive: %v", err, ok)
		}
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		checkSeeks(t, m, want)
		n := m.DataSize()
		for _, at := range []int64{0, 1, n / 3, n - 1, n, n + 1} {
			for _, length := range []int64{0, 1, n / 2, n, math.MaxInt64} {
				checkRuns(t, m, want, at, length)
			}
		}
		if again, err := Parse(m.Text(), size); err != nil || !slices.Equal(again.Segments(), m.Segments()) {
			t.Fatalf("not the same again: %v", err)
		}
	})
}

func naive(text string, size int64) (flat, bool) {
	var segs []Segment
	if json.Unmarshal([]byte(text), &segs) != nil {
		return flat{}, false
	}
	f := flat{file: make([]byte, size), data: make([]bool, size)}
	var end int64
	for _, s := range segs {
		if s.Offset < end || s.Length < 1 || s.Length > size || s.Offset > size-s.Length {
			return flat{}, false
		}
		end = s.Offset + s.Length
		for i := s.Offset; i < end; i++ {
			f.data[i] = true
			f.file[i] = byte(1 + i%251)
		}
		f.payload = append(f.payload, f.file[s.Offset:end]...)
	}
	return f, true
}
