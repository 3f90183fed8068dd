package disk

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// FuzzRecord reads any bytes as KEY.meta.
func FuzzRecord(f *testing.F) {
	f.Add(`{"version":1,"name":"a","size":9,"parts":[{"digest":"x","length":9,"pieceSize":3}]}` + "\n[]\n")
	f.Add("{}\n")
	f.Add(`{"version":1,"parts":[{"length":-1,"pieceSize":1}]}` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, rest, err := parseRecord(strings.NewReader(text))
		if err != nil {
			return
		}
		if m, err := readMap(rest, r.Size); err == nil {
			_ = r.layout(m).PayloadSize()
		}
	})
}

// TestRecordOfPackedFile has a packed file with holes be described by its
// record: it has the pieces of the file, which are granules between multiples
// of a size in the file, and not as many as its payload would have.
func TestRecordOfPackedFile(t *testing.T) {
	t.Parallel()
	const granule = 32 << 10
	m, err := sparse.New([]sparse.Segment{{Offset: granule - 4096, Length: 8192}, {Offset: 5 * granule, Length: 4096}, {Offset: 9*granule - 512, Length: 1024}}, 16*granule)
	if err != nil {
		t.Fatal(err)
	}
	f := &layout.File{Name: "a", Map: m, Index: layout.NewIndex("sha256:i", 1, "sha256:h", &packed.Head{Granule: granule, Map: m}, nil)}
	f.Parts = []layout.Part{{Digest: "sha256:i", Encoding: layout.Packed, Length: m.DataSize()}}
	want := NewGrid(f)
	dir, err := Open(t.TempDir(), Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	key := strings.Repeat("ab", 32)
	if err := dir.writeRecord(key, f, want); err != nil {
		t.Fatal(err)
	}
	_, got, err := dir.Layout(key)
	if err != nil {
		t.Fatal(err)
	}
	if got.Pieces() != 5 || want.Pieces() != 5 {
		t.Fatalf("%d pieces by the record, %d by the file, not 5", got.Pieces(), want.Pieces())
	}
	for i := range 5 {
		off, n := got.Extent(i)
		if wantOff, wantN := want.Extent(i); off != wantOff || n != wantN {
			t.Errorf("piece %d: %d bytes at %d, not %d at %d", i, n, off, wantN, wantOff)
		}
	}
	// Who counts what is local reads the words of just these pieces.
	state, err := os.OpenFile(filepath.Join(dir.Name(), Files, key+".state"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	s, err := mapLocked(state, key, want.Pieces(), false, Lock)
	if err != nil {
		t.Fatal(err)
	}
	defer s.unmap()
	for i := range 5 {
		s.set(i, 1, true)
	}
	if _, local, verified, err := dir.Presence(state, key); err != nil || local != m.DataSize() || !verified {
		t.Errorf("%d of %d bytes are local, verified %v: %v", local, m.DataSize(), verified, err)
	}
}
