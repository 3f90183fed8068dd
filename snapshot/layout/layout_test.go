package layout

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

func split() *File {
	return &File{
		Name: "memory-ranges", Map: sparse.Dense(25),
		Parts: []Part{
			{Digest: "sha256:" + strings.Repeat("1", 64), StoredSize: 7, Encoding: Zstd, Length: 10},
			{Digest: "sha256:" + strings.Repeat("2", 64), StoredSize: 10, Offset: 10, Length: 10},
			{Digest: "sha256:" + strings.Repeat("1", 64), StoredSize: 5, Offset: 20, Length: 5},
		},
	}
}

func TestPartAt(t *testing.T) {
	f := split()
	for off, want := range map[int64]int{0: 0, 9: 0, 10: 1, 19: 1, 20: 2, 24: 2} {
		if got := f.PartAt(off); got != want {
			t.Errorf("part at %d is %d", off, got)
		}
	}
	if f.Size() != 25 || f.PayloadSize() != 25 || f.StoredSize() != 22 || f.Digest() != "" || f.Parts[1].End() != 20 {
		t.Errorf("%d %d %d %q", f.Size(), f.PayloadSize(), f.StoredSize(), f.Digest())
	}
	f.Parts = f.Parts[:1]
	if f.Digest() != f.Parts[0].Digest {
		t.Errorf("digest %q", f.Digest())
	}
}

// Only what decides the bytes and their checks is in the key, and all of it.
func TestKey(t *testing.T) {
	want := split().Key()
	for name, change := range map[string]func(f *File){
		"name":       func(f *File) { f.Name = "other" },
		"mode":       func(f *File) { f.Mode = 0o600 },
		"media type": func(f *File) { f.MediaType = "x" },
		"map text":   func(f *File) { f.MapText = "[]" },
	} {
		f := split()
		if change(f); f.Key() != want {
			t.Errorf("%s changes the key", name)
		}
	}
	for name, change := range map[string]func(f *File){
		"digest":   func(f *File) { f.Parts[0].Digest = f.Parts[1].Digest },
		"encoding": func(f *File) { f.Parts[0].Encoding = Raw },
		"stored":   func(f *File) { f.Parts[0].StoredSize++ },
		"length":   func(f *File) { f.Parts[0].Length++ },
		"pieces":   func(f *File) { f.Parts[1].Pieces = &Pieces{Size: 5, Sums: make([]byte, 64)} },
		"fewer":    func(f *File) { f.Parts = f.Parts[:2] },
		"size":     func(f *File) { f.Map = sparse.Dense(26) },
		"map": func(f *File) {
			m, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 5}, {Offset: 5, Length: 20}}, 25)
			if err != nil {
				t.Fatal(err)
			}
			f.Map = m
		},
	} {
		f := split()
		if change(f); f.Key() == want {
			t.Errorf("%s does not change the key", name)
		}
	}
	if len(want) != 64 {
		t.Errorf("key %q", want)
	}
}

func TestSum(t *testing.T) {
	a, b := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	p := &Pieces{Size: 1, Sums: append(a[:], b[:]...)}
	if p.Sum(0) != a || p.Sum(1) != b {
		t.Error("sums are mixed up")
	}
	if Raw.String() != "raw" || Zstd.String() != "zstd" {
		t.Error("names of encodings")
	}
}
