package disk

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// TestComparedMeanwhile has another process take a piece back, and this one compare
// what has changed before the piece has gone, or before it is counted. What is logged
// says where it was all the same.
func TestComparedMeanwhile(t *testing.T) {
	t.Parallel()
	const pieces, size, piece = 16, 128 << 10, 2
	m, err := sparse.New([]sparse.Segment{{Offset: 0, Length: pieces * size}}, pieces*size)
	if err != nil {
		t.Fatal(err)
	}
	l := &layout.File{Name: "a", Map: m, Parts: []layout.Part{{
		Digest: "sha256:x", StoredSize: pieces * size, Length: pieces * size, // more than one piece
	}}}
	for _, died := range []bool{false, true} { // another over the same, before
		for _, gone := range []bool{false, true} { // the piece
			name := t.TempDir()
			var wrong int64
			var log bytes.Buffer
			open := func() *File {
				dir, err := Open(name, Hooks{
					Log: slog.New(slog.NewJSONHandler(&log, nil)), Before: func(string) {},
					Wrong: func(_ string, n int64) { wrong += n }, Shown: func(string) (*File, func()) { return nil, nil },
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = dir.Close() })
				f, err := dir.Open(strings.Repeat("ab", 32), l, NewGrid(l), Keep, nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(f.Close)
				return f
			}
			f, other := open(), open()
			if died {
				other.State.taking()
			}
			told := make(chan Stretch, pieces)
			f.OnDrop(func(off, n int64) { told <- Stretch{off, n} })
			if err := f.Write(&Incoming{Piece: piece, Payload: make([]byte, size), Verified: true, By: ByFetch}); err != nil {
				t.Fatal(err)
			}
			f.Compare(true)
			_, done := other.State.taking()
			takeBack := func() {
				if !other.State.withdraw(piece, other.State.Word(piece)) {
					t.Fatal("the piece was not there")
				}
			}
			if gone {
				takeBack()
			}
			f.Compare(false)
			if !gone {
				takeBack()
			}
			done(1)
			f.Compare(true)
			var line struct{ Offset, Length int64 }
			if err := json.Unmarshal(log.Bytes(), &line); err != nil || wrong != 1 {
				t.Fatalf("%d pieces were wrong, not 1, and the line is %q: %v", wrong, log.Bytes(), err)
			}
			want := f.Grid.Stretch(piece, piece+1)
			if got := <-told; got != want || line != struct{ Offset, Length int64 }{want.Off, want.N} {
				t.Errorf("told of %v and %v, not of %v", got, line, want)
			}
		}
	}
}
