package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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
	writeTar(ts, args[0],
		file("snapshot.json", 0o644, []byte(`{"version":1,"config":{"name":"frag","id":"F1"},"files":["cow.raw","state.json"]}`)),
		file("cow.raw", 0o644, data.Bytes(), "COCOON.sparse.map", segs, "COCOON.sparse.size", fmt.Sprint(segments/8*stride+12345)),
		file("state.json", 0o644, []byte("{}")),
	)
}

// oddtar FILE: an export tar with what no cocoon writes yet: keys, numbers
// and values of the envelope, records, names, modes and maps.
func oddTar(ts *testscript.TestScript, _ bool, args []string) {
	noise := make([]byte, 3<<20+17)
	for i := range noise {
		noise[i] = byte(i * i >> 9)
	}
	writeTar(ts, args[0],
		file("snapshot.json", 0o644, []byte("{\n  \"version\" : 1,\t\"config\": {\"name\":\"odd\", \"id\":\"X\", \"future\":{\"b\":[1e400,-0.0],\"a\":null},"+
			" \"big\":12345678901234567890123, \"description\":\"\\u00e4\\/<&>\", \"nic_mtus\":[9000] },\n \"z\":true, \"memory\":1.0}\n\n")),
		file("zz first", 0o400, noise, "COCOON.future", "value = 1\nand more"),
		file("-dash", 0o755, nil),
		file("ünïcode ☃.raw", 0o600, noise[:1<<20], "COCOON.sparse.map", fmt.Sprintf(`[{"o":1,"l":3},{"o":4,"l":1},{"o":70001,"l":%d}]`, 1<<20-4),
			"COCOON.sparse.size", "50000000", "COCOON.sparse.kind", ""),
		file("mode 0", 0, nil),
		file(".hidden.qcow2", 0o444, noise[:1<<20]),
		file("same.qcow2", 0o644, noise[:1<<20]),
		file("hole.raw", 0o644, nil, "COCOON.sparse.map", "null", "COCOON.sparse.size", "67108864"),
		file("config.json", 0o640, []byte("{}")),
	)
}

// tarFile is an entry to be written.
type tarFile struct {
	hdr  tar.Header
	body []byte
}

// file is an entry with records.
func file(name string, mode int64, body []byte, records ...string) tarFile {
	f := tarFile{tar.Header{Name: name, Mode: mode, Size: int64(len(body))}, body}
	for i := 0; i < len(records); i += 2 {
		if i == 0 {
			f.hdr.PAXRecords = map[string]string{}
		}
		f.hdr.PAXRecords[records[i]] = records[i+1]
	}
	return f
}

func writeTar(ts *testscript.TestScript, name string, files ...tarFile) {
	f, err := os.Create(ts.MkAbs(name))
	ts.Check(err)
	defer f.Close()
	w := tar.NewWriter(f)
	for i := range files {
		ts.Check(w.WriteHeader(&files[i].hdr))
		_, err := w.Write(files[i].body)
		ts.Check(err)
	}
	ts.Check(errors.Join(w.Close(), f.Close()))
}

// renamed OUT IN OLD NEW: the tars are the same, but that the envelope has
// NEW for OLD.
func renamed(ts *testscript.TestScript, _ bool, args []string) {
	var envelopes [2]string
	var rest [2][]entry
	for i := range rest {
		all, err := readTar(ts.MkAbs(args[i]))
		ts.Check(err)
		rest[i] = all[1:]
		f, err := os.Open(ts.MkAbs(args[i]))
		ts.Check(err)
		defer f.Close()
		r := tar.NewReader(f)
		_, err = r.Next()
		ts.Check(err)
		text, err := io.ReadAll(r)
		ts.Check(err)
		envelopes[i] = string(text)
	}
	if want := strings.Replace(envelopes[1], args[2], args[3], 1); envelopes[0] != want || envelopes[0] == envelopes[1] {
		ts.Fatalf("envelope %q, want %q", envelopes[0], want)
	}
	if !slices.Equal(rest[0], rest[1]) {
		ts.Fatalf("entries differ: %+v, %+v", rest[0], rest[1])
	}
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
