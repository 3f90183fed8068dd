package workingset

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/test/tier"
)

const ms = time.Millisecond

func TestStage(t *testing.T) {
	t.Parallel()
	for after, want := range map[time.Duration]int{
		0: 0, 99 * ms: 0, 100 * ms: 1, 299 * ms: 1, 300 * ms: 2, 699 * ms: 2, 700 * ms: 3, 1499 * ms: 3, 1500 * ms: 4, 1 << 62: MaxStage,
	} {
		if got := Stage(after); got != want {
			t.Errorf("Stage(%v) = %d, want %d", after, got, want)
		}
	}
}

func memory(extents ...Extent) []File {
	return []File{{Title: "memory-ranges", Content: "m", Size: 100*PageSize + 1, Extents: extents}}
}

func TestFromTouches(t *testing.T) {
	t.Parallel()
	files := []File{{Title: "disk.raw", Content: "d", Size: 8 * PageSize}, {Title: "memory-ranges", Content: "m", Size: 100*PageSize + 1}}
	got := FromTouches(files, []Touch{
		{1, 100, 5120 * ms}, // its last page, of one byte
		{1, 7, 5000 * ms},
		{1, 7, 9000 * ms}, // again
		{1, 6, 5001 * ms},
		{1, 8, 5100 * ms},
		{1, 101, 5100 * ms}, // beyond the end
		{1, -1, 5100 * ms},
		{2, 0, 5100 * ms}, // no such file
	})
	want := &Set{Runs: 1, Files: memory(Extent{6, 2, 0, 1}, Extent{8, 1, 1, 1}, Extent{100, 1, 1, 1})}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if got.Bytes() != 3*PageSize+1 || got.Stages() != 2 {
		t.Errorf("%d bytes in %d stages", got.Bytes(), got.Stages())
	}
}

func TestRecorderLimit(t *testing.T) {
	t.Parallel()
	r := NewRecorder(memory(), 3*PageSize)
	if n := r.Touch(0, PageSize-1, PageSize+2, 20*ms); n != 3 {
		t.Errorf("%d new pages, want 3", n)
	}
	if n := r.Touch(0, 0, 8*PageSize, 30*ms); n != 0 {
		t.Errorf("%d new pages beyond the limit", n)
	}
	if n, last := r.Recorded(); n != 3*PageSize || last != 20*ms {
		t.Errorf("%d bytes, the last after %v", n, last)
	}
}

// pageset is a set as a map, for comparisons page by page.
type pageset map[int64][2]int

func spread(all []Extent) pageset {
	p := pageset{}
	for _, e := range all {
		for page := e.Page; page < e.End(); page++ {
			p[page] = [2]int{e.Stage, e.Runs}
		}
	}
	return p
}

func randomSet(r *rand.Rand) *Set {
	s := &Set{Runs: 1 + r.IntN(2), Files: memory()}
	for page := r.Int64N(9); page < 100; page += 1 + r.Int64N(9) {
		e := Extent{page, 1 + r.Int64N(min(9, 101-page)), r.IntN(4), 1 + r.IntN(s.Runs)}
		s.Files[0].Extents = append(s.Files[0].Extents, e)
		page = e.End()
	}
	return s
}

func TestMerge(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		a, b := randomSet(r), randomSet(r)
		want := spread(a.Files[0].Extents)
		for page, v := range spread(b.Files[0].Extents) {
			if was, ok := want[page]; ok {
				v = [2]int{min(was[0], v[0]), was[1] + v[1]}
			}
			want[page] = v
		}
		for page, v := range want {
			if a.Runs+b.Runs >= 3 && v[1] == 1 {
				delete(want, page)
			}
		}
		got, err := Merge(a, b)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.check(); err != nil || got.Runs != a.Runs+b.Runs {
			t.Fatalf("%d runs: %v", got.Runs, err)
		}
		if !reflect.DeepEqual(spread(got.Files[0].Extents), want) {
			t.Fatalf("%v and %v are merged to %v", a.Files, b.Files, got.Files)
		}
	}
}

func TestMergeOther(t *testing.T) {
	t.Parallel()
	a := &Set{Runs: 1, Partial: true, Files: memory(Extent{1, 1, 0, 1})}
	b := &Set{Runs: 1, Files: memory(Extent{2, 1, 0, 1})}
	b.Files[0].Content = "another"
	got, err := Merge(a, b)
	if err != nil || !got.Partial || got.Runs != 2 || !reflect.DeepEqual(got.Files, b.Files) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Merge(); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing merged: %v", err)
	}
}

func TestFor(t *testing.T) {
	t.Parallel()
	s := &Set{Runs: 1, Files: append(memory(Extent{0, 4, 0, 1}, Extent{6, 4, 1, 1}), File{Title: "cow.raw", Content: "c", Size: PageSize, Extents: []Extent{{0, 1, 0, 1}}})}
	for _, c := range []struct {
		title, content string
		size           int64
		want           []Extent
	}{
		{"renamed", "m", 100*PageSize + 1, s.Files[0].Extents},
		{"memory-ranges", "a child's", 100 * PageSize, s.Files[0].Extents},
		{"memory-ranges", "a child's", 7*PageSize + 1, []Extent{{0, 4, 0, 1}, {6, 2, 1, 1}}},
		{"memory-ranges", "a child's", 5 * PageSize, []Extent{{0, 4, 0, 1}}},
		{"memory-ranges", "c", PageSize, s.Files[1].Extents},
		{"memory-ranges", "a child's", 0, nil},
		{"unknown", "unknown", PageSize, nil},
	} {
		f := s.For(c.title, c.content, c.size)
		if f == nil {
			if c.want != nil {
				t.Errorf("%s %s: nothing", c.title, c.content)
			}
			continue
		}
		if !reflect.DeepEqual(f.Extents, c.want) || f.Size != c.size || f.Title != c.title {
			t.Errorf("%s %s: %+v, want %v", c.title, c.content, f, c.want)
		}
	}
	if !reflect.DeepEqual(s.Files[0].Extents, memory(Extent{0, 4, 0, 1}, Extent{6, 4, 1, 1})[0].Extents) {
		t.Error("the set was changed")
	}
}

func TestEncode(t *testing.T) {
	t.Parallel()
	for _, s := range []*Set{
		{Runs: 1},
		{Runs: 5, Partial: true, Files: memory(Extent{0, 3, 2, 5}, Extent{3, 98, 0, 1})},
	} {
		data, err := Encode(s)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(data)
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v came back as %+v, %v", s, got, err)
		}
	}
}

// TestEncodeLarge has more extents than fit: what comes back has all pages,
// and some more.
func TestEncodeLarge(t *testing.T) {
	tier.Long(t, "encodes 300,000 extents")
	t.Parallel()
	const n = 300_000
	r := rand.New(rand.NewPCG(1, 2))
	f := File{Title: "m", Size: n * 64 * PageSize}
	for i := range int64(n) {
		f.Extents = append(f.Extents, Extent{i*64 + r.Int64N(32), 1 + r.Int64N(30), r.IntN(8), 1 + r.IntN(3)})
	}
	s := &Set{Runs: 3, Files: []File{f}}
	data, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > MaxEncoded || len(got.Files[0].Extents) > maxExtents || got.Bytes() > 3*s.Bytes() {
		t.Errorf("%d bytes for %d extents, %d bytes of pages instead of %d", len(data), len(got.Files[0].Extents), got.Bytes(), s.Bytes())
	}
	all := got.Files[0].Extents
	for _, e := range f.Extents {
		for all[0].End() < e.End() {
			all = all[1:]
		}
		if all[0].Page > e.Page || all[0].Stage > e.Stage {
			t.Fatalf("%+v is not in %+v", e, all[0])
		}
	}
}

func compressed(t testing.TB, text string) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll([]byte(text), nil)
}

// document is a set's JSON with the given extents.
func document(extents string) string {
	return fmt.Sprintf(`{"version":1,"page":4096,"runs":2,"files":[{"title":"m","content":"c","size":40961,"extents":[%s]}]}`, extents)
}

var hostile = map[string]string{
	"overlap":            document("[0,2,0,1],[1,1,0,1]"),
	"backwards":          document("[4,1,0,1],[1,1,0,1]"),
	"beyond the end":     document("[10,2,0,1]"),
	"far beyond":         document("[9223372036854775807,1,0,1]"),
	"overflow":           document("[1,9223372036854775807,0,1]"),
	"no pages":           document("[1,0,0,1]"),
	"negative":           document("[-1,1,0,1]"),
	"fraction":           document("[1.5,1,0,1]"),
	"large number":       document("[1,1,0,99999999999999999999]"),
	"stage":              document("[1,1,17,1]"),
	"seen too often":     document("[1,1,0,3]"),
	"never seen":         document("[1,1,0,0]"),
	"three numbers":      document("[1,1,0]"),
	"five numbers":       document("[1,1,0,1,1]"),
	"null":               document("null"),
	"object":             document(`{"page":1}`),
	"nested":             document(strings.Repeat("[", 20000)),
	"a million extents":  document(strings.Repeat("[1,1,0,1],", 1_000_000) + "[1,1,0,1]"),
	"800,000 extents":    document(strings.Repeat("[1,1,0,1],", 800_000) + "[1,1,0,1]"),
	"many files":         `{"version":1,"page":4096,"runs":1,"files":[` + strings.Repeat("{},", 1_000_000) + "{}]}",
	"nulls for files":    `{"version":1,"page":4096,"runs":1,"files":[` + strings.Repeat("null,", 1_000_000) + "null]}",
	"same title twice":   `{"version":1,"page":4096,"runs":1,"files":[{"title":"m"},{"title":"m"}]}`,
	"no title":           `{"version":1,"page":4096,"runs":1,"files":[{}]}`,
	"long title":         `{"version":1,"page":4096,"runs":1,"files":[{"title":"` + strings.Repeat("m", 256) + `"}]}`,
	"files not a list":   `{"version":1,"page":4096,"runs":1,"files":7}`,
	"extents not a list": `{"version":1,"page":4096,"runs":1,"files":[{"title":"m","extents":"x"}]}`,
	"no recordings":      `{"version":1,"page":4096,"files":[]}`,
	"other version":      `{"version":2,"page":4096,"runs":1,"files":[]}`,
	"other page":         `{"version":1,"page":65536,"runs":1,"files":[]}`,
	"negative size":      `{"version":1,"page":4096,"runs":1,"files":[{"title":"m","size":-1}]}`,
	"100 MiB":            `{"version":1,"page":4096,"runs":1,"files":[],"x":"` + strings.Repeat("x", 100<<20) + `"}`,
	"not JSON":           "\x00",
	"nothing":            "",
}

func TestHostile(t *testing.T) { // not parallel: it counts what is allocated
	for name, text := range hostile {
		if testing.Short() && len(text) > 1<<16 {
			continue // takes seconds
		}
		data := compressed(t, text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s, err := Decode(data)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 256<<20 {
			t.Errorf("%s: %d MiB allocated in all", name, n>>20)
		}
	}
	for name, data := range map[string][]byte{
		"not zstd": []byte("{}"), "empty": nil, "too long": make([]byte, MaxEncoded+1), "cut": compressed(t, document("[0,1,0,1]"))[:30],
	} {
		if s, err := Decode(data); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for name, text := range hostile {
		if len(text) < 1<<16 {
			f.Add([]byte(text))
		} else {
			f.Logf("%s is left out", name)
		}
	}
	f.Add([]byte(document("[0,2,0,1],[2,1,1,2],[10,1,16,1]")))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parse(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		data, err := Encode(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(data)
		if err != nil || again.Bytes() < s.Bytes() {
			t.Fatalf("%+v came back as %+v, %v", s, again, err)
		}
		if merged, err := Merge(s, s); err != nil || merged.check() != nil {
			t.Fatalf("merged with itself: %+v, %v", merged, err)
		}
		if twice, err := Encode(again); err != nil || !bytes.Equal(data, twice) {
			t.Fatalf("encoded twice: %v", err)
		}
	})
}
