package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

func TestEditEnvelope(t *testing.T) {
	for _, c := range []struct{ text, name, description, want string }{
		{`{"config":{"name":"a","big":12345678901234567890}}`, "", "", `{"config":{"name":"a","big":12345678901234567890}}`},
		{`{"config":{"name":"a","big":12345678901234567890}}`, "b", "", `{"config":{"name":"b","big":12345678901234567890}}`},
		{"{ \"name\":1,\n\t\"config\" : { \"name\" :\t\"a\" , \"x\":{\"name\":\"y\"} } }\n", "b<&>", "",
			"{ \"name\":1,\n\t\"config\" : { \"name\" :\t\"b<&>\" , \"x\":{\"name\":\"y\"} } }\n"},
		{`{"config":{"n\u0061me":"a","description":"old"}}`, `q"`, "new", `{"config":{"n\u0061me":"q\"","description":"new"}}`},
		{`{"config":{"name":null}}`, "b", "", `{"config":{"name":"b"}}`},
		{`{"config":{"name":{"a":[1]}}}`, "b", "", `{"config":{"name":"b"}}`},
		{"{\"config\":{\n    \"name\": \"a\"\n}}", "", "d", "{\"config\":{\n    \"description\": \"d\",\n    \"name\": \"a\"\n}}"},
		{`{"config":{"name":"a","Name":"c"}}`, "b", "", `{"config":{"name":"b","Name":"b"}}`},
		{`{"config":{"NAME":"c"}}`, "b", "", `{"config":{"name": "b","NAME":"b"}}`},
		{`{"config":{"name":"a"},"Config":{"name":"c","x":1}}`, "b", "", `{"config":{"name":"b"},"Config":{"name":"b","x":1}}`},
		{`{"config":{}}`, "n", "d", `{"config":{"name": "n","description": "d"}}`},
		{`{"config":{ }}`, "n", "", `{"config":{ "name": "n" }}`},
	} {
		got, err := editEnvelope([]byte(c.text), c.name, c.description)
		if err != nil || string(got) != c.want {
			t.Errorf("%s\n with %q %q is\n%s\n want\n%s\n%v", c.text, c.name, c.description, got, c.want, err)
		}
	}
}

// FuzzEditEnvelope: what comes out is JSON again that says the new name,
// everything else says what it said, and the bytes outside the spans are
// the same.
func FuzzEditEnvelope(f *testing.F) {
	for _, s := range []string{
		`{"config":{"name":"a","description":"d"},"version":1}`, `{"config":{}}`, `{"config":{"x":[{}]}}`,
		`{"config":{"name":"a","NAME":1},"Config":{"Description":"x"}}`, `{"CONFIG":{"y":1}}`,
		`{"config":{"name":"a"},"config":{}}`, `[]`, `{"config":null}`, "{\"config\":{\n \"name\"\t:1e400}}", `{"config":{"name":"\ud800"}}`,
	} {
		f.Add(s, "new", "text")
	}
	f.Fuzz(func(t *testing.T, text, name, description string) {
		got, err := editEnvelope([]byte(text), name, description)
		if err != nil || name == "" || description == "" {
			return
		}
		want := map[string]any{}
		if err := decode([]byte(text), &want); err != nil {
			t.Fatalf("%q was edited and is not JSON: %v", text, err)
		}
		have := map[string]any{}
		if err := decode(got, &have); err != nil {
			t.Fatalf("%q became %q: %v", text, got, err)
		}
		for key, value := range have {
			if !strings.EqualFold(key, "config") {
				continue
			}
			cfg := value.(map[string]any)
			if cfg["name"] != decoded(t, name) || cfg["description"] != decoded(t, description) {
				t.Fatalf("%q became %q", text, got)
			}
			old := want[key].(map[string]any)
			for k, v := range cfg {
				switch {
				case strings.EqualFold(k, "name"):
					old[k] = decoded(t, name)
				case strings.EqualFold(k, "description"):
					old[k] = decoded(t, description)
				default:
					continue
				}
				if v != old[k] {
					t.Fatalf("%q became %q", text, got)
				}
			}
		}
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(have)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q became %q", text, got)
		}
		again, err := editEnvelope(got, name, description)
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("a second time: %q, %v", again, err)
		}
	})
}

func decode(text []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	return dec.Decode(into)
}

// decoded is a string as JSON has it, which replaces what is no UTF-8.
func decoded(t *testing.T, s string) any {
	var back any
	if err := json.Unmarshal([]byte(quote(s)), &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// FuzzConfig: whatever a config blob says of a known set of layers, it
// is refused as wrong content or gives files that hold together.
func FuzzConfig(f *testing.F) {
	layers := []manifest.Descriptor{
		{MediaType: manifest.MediaTypeDiskRaw, Digest: "sha256:" + strings.Repeat("1", 64), Size: 16, Annotations: map[string]string{manifest.AnnotationTitle: "cow.raw"}},
		{MediaType: manifest.MediaTypeVMMemory, Digest: "sha256:" + strings.Repeat("2", 64), Size: 1 << 20, Annotations: map[string]string{manifest.AnnotationTitle: "memory-ranges"}},
		{MediaType: manifest.MediaTypeVMMemory, Digest: "sha256:" + strings.Repeat("3", 64), Size: 5, Annotations: map[string]string{manifest.AnnotationTitle: "memory-ranges"}},
	}
	chunks := `"chunks":["` + layers[1].Digest + `","` + layers[2].Digest + `"]`
	f.Add(`{"schemaVersion":"v1","files":{"cow.raw":{"mode":420,"sparseMap":"[{\"o\":0,\"l\":16}]","sparseSize":32}}}`, false)
	f.Add(`{"schemaVersion":"v1","dev.epochfs.pieces":{"cow.raw":{"size":262144,"sha256":"`+strings.Repeat("A", 43)+`="}},"dev.epochfs.envelope":"{\"config\":{}}"}`, false)
	f.Add(`{"schemaVersion":"v2","files":{"cow.raw":{"size":16},"memory-ranges":{"size":1048581,`+chunks+`}}}`, true)
	f.Add(`{"schemaVersion":"v2","files":{"cow.raw":{"size":16},"memory-ranges":{"size":1048577,`+chunks+`},"\u001b":{`+chunks+`}}}`, true)
	for text, v2 := range configsOfFixtures(f) {
		f.Add(text, v2)
	}
	f.Fuzz(func(t *testing.T, text string, v2 bool) {
		var cfg manifest.SnapshotConfig
		if json.Unmarshal([]byte(text), &cfg) != nil {
			return
		}
		m := &manifest.OCIManifest{ArtifactType: manifest.ArtifactTypeSnapshot, Layers: layers[:2]}
		if v2 {
			m.ArtifactType, m.Layers = manifest.ArtifactTypeSnapshotV2, layers
		}
		files, err := snapshotFiles(t.Context(), nil, "vm", m, &cfg)
		if err == nil {
			var text []byte
			if text, err = envelopeOf(&cfg, "vm", []string{"cow.raw", "memory-ranges"}); err == nil && !json.Valid(text) {
				t.Fatalf("envelope %q", text)
			}
		}
		if err != nil {
			if !errors.Is(err, layout.ErrContent) {
				t.Fatalf("%v", err)
			}
			return
		}
		for _, f := range files {
			holdsTogether(t, f)
		}
	})
}

func holdsTogether(t *testing.T, f *layout.File) {
	t.Helper()
	var at int64
	for i, p := range f.Parts {
		if p.Offset != at || p.Length < 0 || p.StoredSize < 0 || p.Encoding == layout.Raw && p.Length != p.StoredSize {
			t.Fatalf("%s: part %d is %+v at %d", f.Name, i, p, at)
		}
		if p.Pieces != nil && int64(len(p.Pieces.Sums)) != 32*pieceCount(p.Length, p.Pieces.Size) {
			t.Fatalf("%s: pieces %+v", f.Name, p.Pieces)
		}
		at += p.Length
	}
	if at != f.PayloadSize() || f.Size() < at || f.Mode > 0o777 || checkName(f.Name) != nil {
		t.Fatalf("%+v", f)
	}
}

// The pieces that a stream is hashed for include those that a tar whose
// sizes are known gets, and all digests together stay short.
func TestPiecePlan(t *testing.T) {
	const gib = 1 << 30
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		cow, memory := rng.Int64N(40*gib), rng.Int64N(64*gib)
		env := &envelopeConfig{Memory: memory + rng.Int64N(8*gib), Storage: cow + rng.Int64N(100*gib)}
		sizes := []int64{54, cow, memory, 4000}
		plan := newPiecePlan(nil)
		n := fittingPiece(sizes)
		var text int64
		for i, name := range []string{"cocoon.json", "cow.raw", "memory-ranges", "state.json"} {
			levels := plan.levels(name, sizes[i], env)
			if len(levels) > maxLevels {
				t.Errorf("%d levels", len(levels))
			}
			if len(levels) > 0 && (levels[0] > n || levels[len(levels)-1] < n) {
				t.Errorf("%v of %s are hashed for, want %d", levels, name, n)
			}
			text += pieceText(sizes[i], n)
		}
		if text >= maxPieceText || n > minPiece && 2*text+200 < maxPieceText {
			t.Errorf("pieces of %d: %d bytes", n, text)
		}
		whole := newPiecePlan(sizes)
		if got := whole.levels("cow.raw", cow, env); cow > minPiece && (len(got) != 1 || got[0] != n) {
			t.Errorf("%v, want %d", got, n)
		}
	}
}

// With sizes that leave the files no piece size in common, each gets one
// of its own, and the text stays short.
func TestPiecesWithoutACommonSize(t *testing.T) {
	file := func(name string, size int64, levels ...int64) *storedFile {
		h := newBlobHasher(size, levels)
		for _, l := range h.levels {
			l.sums = make([]byte, pieceCount(size, l.size)*32)
		}
		return &storedFile{name: name, hashes: h}
	}
	pieces := choosePieces([]*storedFile{
		file("a", 1<<30, 256<<10, 512<<10), file("b", 1<<31, 1<<20), file("c", 8<<30, 4<<20), file("d", 100), file("empty", 0),
	})
	if len(pieces) != 3 || pieces["b"].Size != 1<<20 || pieces["c"].Size != 4<<20 || pieces["d"].Size == 0 {
		for name, p := range pieces {
			t.Errorf("%s: pieces of %d, %d bytes of sums", name, p.Size, len(p.SHA256))
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		lo, hi int64
		n      int
	}{{1, 1, 1}, {1, 2, 2}, {1, 8, 4}, {1, 16, 4}, {1, 1 << 20, 4}} {
		got := spread(c.lo, c.hi)
		if len(got) != c.n || got[0] != c.lo || got[len(got)-1] != c.hi {
			t.Errorf("%d to %d: %v", c.lo, c.hi, got)
		}
	}
}
