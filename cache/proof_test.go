package cache

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// named is a source of which it is known who it is.
type named struct {
	*fakeSource
	origin string
	proven bool
}

func (n *named) Origin() string { return n.origin }
func (n *named) Proven() bool   { return n.proven }

// unchecked are the kinds of which bytes can be handed out before their
// blob is complete.
var unchecked = []kind{kinds[0], kinds[4]}

// wrongIn has byte at of each stored blob flipped, wherever it is asked for.
func wrongIn(at int64) func(string, int64, []byte) ([]byte, error) {
	return func(_ string, off int64, b []byte) ([]byte, error) {
		if i := at - off; i >= 0 && i < int64(len(b)) {
			b[i] ^= 0x40
		}
		return b, nil
	}
}

// TestUnprovenSource reads from a source that proves nothing: no byte
// comes before the digest of its blob was compared.
func TestUnprovenSource(t *testing.T) {
	for _, k := range unchecked {
		t.Run(k.name, func(t *testing.T) {
			src := &named{fakeSource: &fakeSource{}, origin: "plain"}
			a := makeFile(t, newRand(t), src.fakeSource, k, wholeLimit+1<<20)
			stored := a.file.Parts[0].StoredSize
			src.mangle = wrongIn(stored - 5)
			h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
			off := a.file.Map.Segments()[0].Offset
			p := make([]byte, 10)
			for range 3 {
				if n, err := h.ReadAt(context.Background(), p, off); !errors.Is(err, layout.ErrContent) {
					t.Fatalf("%d bytes of a blob that is wrong at its end: %v", n, err)
				}
			}

			src.mangle = nil
			h = openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
			checkRead(t, h, a.flat, int(off), 1)
			if !h.Verified() {
				t.Error("a byte was handed out before all of its blob was verified")
			}
			src.reset()
			checkRead(t, h, a.flat, 0, len(a.flat))
			if n, _ := src.reset(); n != 0 {
				t.Errorf("%d requests for what was verified", n)
			}
		})
	}
}

// TestUnprovenWithoutRoom has no room to keep a blob until it is hashed.
func TestUnprovenWithoutRoom(t *testing.T) {
	src := &named{fakeSource: &fakeSource{}, origin: "plain"}
	a := makeFile(t, newRand(t), src.fakeSource, kinds[0], 24<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{Size: 8 << 20}), a.file, src)
	if _, err := h.ReadAt(context.Background(), make([]byte, 1), a.file.Map.Segments()[0].Offset); !errors.Is(err, errNoProof) {
		t.Errorf("a byte of it: %v", err)
	}
}

// TestOriginsAreApart fills a cache from a source that lies, with bytes
// that nothing has vouched for. Another source's readers do not see them:
// neither in the same file, nor in another that holds the same blob.
func TestOriginsAreApart(t *testing.T) {
	liar := &named{fakeSource: &fakeSource{}, origin: "liar", proven: true}
	a := makeFile(t, newRand(t), liar.fakeSource, kinds[0], 8<<20)
	honest := &named{fakeSource: &fakeSource{blobs: liar.blobs}, origin: "honest", proven: true}
	liar.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
		clear(b)
		return b, nil
	}
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, liar)
	at := int(a.file.Map.Segments()[0].Offset)
	p := make([]byte, 4096)
	if _, err := h.ReadAt(context.Background(), p, int64(at)); err != nil || bytes.Equal(p, a.flat[at:at+len(p)]) {
		t.Fatal("the liar does not lie", err)
	}
	other := *a.file // the same blob under another key
	m, err := sparse.New(a.file.Map.Segments(), a.file.Size()+4096)
	if err != nil {
		t.Fatal(err)
	}
	other.Map = m
	checkRead(t, openFile(t, openCache(t, dir, Options{}), &other, honest), append(bytes.Clone(a.flat), make([]byte, 4096)...), 0, len(a.flat)+4096)
	checkRead(t, openFile(t, c, a.file, honest), a.flat, 0, len(a.flat))
}
