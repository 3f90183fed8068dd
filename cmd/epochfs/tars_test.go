package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// fragtar FILE: an export tar with a disk whose map is longer than what is
// written into a tar's header, and yet such that tars can be read with it:
// a little data in every other block, in eight segments.
func fragTar(ts *testscript.TestScript, _ bool, args []string) {
	const segments, stride = 38000, 8192
	var text, data bytes.Buffer
	for i := range segments {
		n := 100 + i%100
		fmt.Fprintf(&text, `,{"o":%d,"l":%d}`, i/8*stride+i%8*500+i%17, n)
		data.Write(bytes.Repeat([]byte{byte(1 + i%251)}, n))
	}
	segs := "[" + text.String()[1:] + "]"
	if len(segs) <= 800<<10 {
		ts.Fatalf("the map has %d bytes", len(segs))
	}
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	w := tar.NewWriter(f)
	env := `{"version":1,"config":{"name":"frag","id":"F1"},"files":["cow.raw","state.json"]}`
	for _, e := range []struct {
		hdr  *tar.Header
		body []byte
	}{
		{&tar.Header{Name: "snapshot.json"}, []byte(env)},
		{&tar.Header{Name: "cow.raw", PAXRecords: map[string]string{
			"COCOON.sparse.map": segs, "COCOON.sparse.size": fmt.Sprint(segments/8*stride + 12345),
		}}, data.Bytes()},
		{&tar.Header{Name: "state.json"}, []byte("{}")},
	} {
		e.hdr.Mode, e.hdr.Size = 0o644, int64(len(e.body))
		ts.Check(w.WriteHeader(e.hdr))
		_, err := w.Write(e.body)
		ts.Check(err)
	}
	ts.Check(errors.Join(w.Close(), f.Close()))
}

// flattar OUT IN: OUT has the entries of IN, those with a map in full.
func flatTar(ts *testscript.TestScript, _ bool, args []string) {
	got, err := readTar(ts.MkAbs(args[0]))
	ts.Check(err)
	f, err := os.Open(ts.MkAbs(args[1]))
	ts.Check(err)
	defer f.Close()
	n := 0
	for r := tar.NewReader(f); ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		ts.Check(err)
		m, err := mapOf(h)
		ts.Check(err)
		sum := sha256.New()
		at := int64(0)
		for _, s := range append(m.Segments(), sparse.Segment{Offset: m.Size()}) {
			_, _ = io.CopyN(sum, zeroBytes{}, s.Offset-at) // neither of them fails
			_, err := io.CopyN(sum, r, s.Length)
			ts.Check(err)
			at = s.Offset + s.Length
		}
		want := entry{name: h.Name, mode: h.Mode, size: m.Size(), sum: [32]byte(sum.Sum(nil))}
		if n >= len(got) || got[n] != want {
			ts.Fatalf("entry %d of %d is not %+v", n, len(got), want)
		}
	}
	if n != len(got) {
		ts.Fatalf("%d entries, want %d", len(got), n)
	}
}

// mapOf is the map that an entry has.
func mapOf(h *tar.Header) (*sparse.Map, error) {
	text, ok := h.PAXRecords["COCOON.sparse.map"]
	if !ok {
		return sparse.Dense(h.Size), nil
	}
	var size int64
	if _, err := fmt.Fscan(strings.NewReader(h.PAXRecords["COCOON.sparse.size"]), &size); err != nil {
		return nil, err
	}
	return sparse.Parse(text, size)
}

// zeroBytes are zeros.
type zeroBytes struct{}

func (zeroBytes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
