package artifacttest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// Tar makes an export tar of files, as cocoon writes it. An empty
// envelope is left out.
func Tar(envelope string, files []File) []byte {
	var buf bytes.Buffer
	size := len(envelope)
	for i := range files {
		size += len(files[i].Data) + 4096
	}
	buf.Grow(size)
	w := tar.NewWriter(&buf)
	entry := func(hdr *tar.Header, body []byte) {
		hdr.Size, hdr.ModTime = int64(len(body)), Created
		if err := w.WriteHeader(hdr); err != nil {
			panic(err)
		}
		if _, err := w.Write(body); err != nil {
			panic(err)
		}
	}
	if envelope != "" {
		entry(&tar.Header{Name: "snapshot.json", Mode: 0o644}, []byte(envelope))
	}
	for i := range files {
		f := &files[i]
		hdr := &tar.Header{Name: f.Name, Mode: f.mode()}
		if f.Map != nil {
			hdr.PAXRecords = map[string]string{
				"COCOON.sparse.map":  f.Map.Text(),
				"COCOON.sparse.size": strconv.FormatInt(f.Map.Size(), 10),
			}
		}
		entry(hdr, f.Payload())
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// Extracted is a file out of a tar.
type Extracted struct {
	Data []byte // holes as zeros
	Mode int64
	PAX  map[string]string
}

// Extract reads a tar the way cocoon's importer does, with what that
// gets wrong too: entries that are no regular files are passed over, a
// body that is cut is noticed only by what comes after it, and a tar cut
// between entries is whole. names is the entries in order.
func Extract(r io.Reader) (files map[string]Extracted, names []string, err error) {
	files = map[string]Extracted{}
	t := tar.NewReader(r)
	for {
		hdr, err := t.Next()
		if errors.Is(err, io.EOF) {
			return files, names, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("tar next: %w", err)
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		f := Extracted{Mode: hdr.Mode, PAX: hdr.PAXRecords}
		if text, ok := hdr.PAXRecords["COCOON.sparse.map"]; ok {
			f.Data, err = extractSparse(t, text, hdr.PAXRecords["COCOON.sparse.size"])
		} else if f.Data, err = readSized(t, hdr.Size); errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("extract %s: %w", hdr.Name, err)
		}
		files[hdr.Name] = f
		names = append(names, hdr.Name)
	}
}

func extractSparse(r io.Reader, text, size string) ([]byte, error) {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return nil, err
	}
	var segs []sparse.Segment
	if err := json.Unmarshal([]byte(text), &segs); err != nil {
		return nil, err
	}
	data := make([]byte, n)
	for _, s := range segs {
		if _, err := io.ReadFull(r, data[s.Offset:s.Offset+s.Length]); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// Fill makes noise of a seed.
func Fill(b []byte, seed uint64) { FillBits(b, seed, 0xff) }

// FillBits makes noise in the bits of mask alone, which compresses as much.
// The race detector is told nothing of it: nobody else has the bytes yet,
// and it takes most of the time of large tests.
//
//go:norace
func FillBits(b []byte, seed uint64, mask byte) {
	x := seed<<1 | 1 // 0 would stay 0
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x>>32) & mask
	}
}

// RandomFile is a file of up to size bytes with a random map, whose
// segments need not be aligned to anything, and random data.
func RandomFile(rng *rand.Rand, name string, size int64) File {
	size = 1 + rng.Int64N(size)
	f := File{Name: name, Data: make([]byte, size)}
	var segs []sparse.Segment
	step := 1 + size/int64(1+rng.IntN(20))
	for at := rng.Int64N(step); at < size; {
		n := 1 + rng.Int64N(min(size-at, step))
		segs = append(segs, sparse.Segment{Offset: at, Length: n})
		Fill(f.Data[at:at+n], rng.Uint64())
		at += n + rng.Int64N(step)
	}
	m, err := sparse.New(segs, size)
	if err != nil {
		panic(err)
	}
	f.Map = m
	return f
}
