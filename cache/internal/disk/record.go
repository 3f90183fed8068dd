package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// recordVersion is the version of KEY.meta: two lines of JSON that describe
// what the file is made of, for processes that read the cache without the
// artifact. The first line is a Record, the second the file's map, which may
// be large and is not always needed.
const recordVersion = 1

// mostRecord bounds the first line, in bytes.
const mostRecord = 4 << 20

// Record describes a cached file.
type Record struct {
	Version int          `json:"version"`
	Name    string       `json:"name"` // the title it was first seen under
	Size    int64        `json:"size"`
	Parts   []RecordPart `json:"parts"`
	Index   *RecordIndex `json:"index,omitempty"` // of a packed file
}

// RecordIndex names the index of a packed file.
type RecordIndex struct {
	Size int64  `json:"size"` // of the index blob, in bytes
	Head string `json:"head"` // digest of its head, which is kept as a blob
}

// RecordPart describes a part. How many pieces a part has is known to the Grid
// alone: those of a packed file are cut at offsets of the file.
type RecordPart struct {
	Digest     string `json:"digest"`
	StoredSize int64  `json:"storedSize"`
	Encoding   string `json:"encoding"`
	Length     int64  `json:"length"`
	PieceSize  int64  `json:"pieceSize"`
}

// RecordOf describes f, which is cut by g.
func RecordOf(f *layout.File, g *Grid) Record {
	r := Record{Version: recordVersion, Name: f.Name, Size: f.Size()}
	for i := range f.Parts {
		p := &f.Parts[i]
		r.Parts = append(r.Parts, RecordPart{p.Digest, p.StoredSize, p.Encoding.String(), p.Length, g.Size[i]})
	}
	if x := f.Index; x != nil {
		r.Index = &RecordIndex{x.Size, x.HeadDigest}
	}
	return r
}

// Packed reports whether the file is one of granules.
func (r *Record) Packed() bool {
	return len(r.Parts) == 1 && r.Parts[0].Encoding == layout.Packed.String()
}

// DataSize returns the bytes of the file's payload.
func (r *Record) DataSize() (n int64) {
	for i := range r.Parts {
		n += r.Parts[i].Length
	}
	return n
}

// writeRecord writes KEY.meta, unless there is one.
func (d *Dir) writeRecord(key string, f *layout.File, g *Grid) error {
	name := path.Join(Files, key+".meta")
	if _, err := d.root.Lstat(name); err == nil {
		return nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := errors.Join(enc.Encode(RecordOf(f, g)), enc.Encode(f.Map.Segments())); err != nil {
		return err
	}
	return d.WriteFile(name, b.Bytes())
}

// Record returns the record of a cached file without reading its map. If it
// cannot be believed, the error is ErrDamaged.
func (d *Dir) Record(key string) (*Record, error) {
	r, _, f, err := d.openRecord(key)
	if err != nil {
		return nil, err
	}
	return r, f.Close()
}

// Layout returns what a cached file is made of by its record, and how it is
// cut. Granules of a packed file are known as far as its index is in the cache.
func (d *Dir) Layout(key string) (*layout.File, *Grid, error) {
	r, rest, f, err := d.openRecord(key)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	m, err := readMap(rest, r.Size)
	if err != nil {
		return nil, nil, errors.Join(ErrDamaged, err)
	}
	l := r.layout(m)
	if l.Index != nil {
		if x := d.Index(r); x != nil {
			l.Index = x
		}
	}
	return l, r.grid(l), nil
}

// Index returns the index of a packed file with that record, all of which is
// read from the cache. The error of a section that is not there is
// fs.ErrNotExist. Index is nil if the head is not there, or the file is not
// packed.
func (d *Dir) Index(r *Record) *layout.Index {
	if len(r.Parts) != 1 || r.Index == nil {
		return nil
	}
	p, x := &r.Parts[0], r.Index
	frame, err := d.Blob(x.Head)
	if err != nil {
		return nil
	}
	head, err := packed.ReadHead(frame, packed.File{Size: r.Size, Data: p.Length, Granule: p.PieceSize, Frames: x.Size - int64(len(frame))})
	if err != nil {
		return nil
	}
	return layout.NewIndex(p.Digest, x.Size, x.Head, head, func(_ context.Context, _, n int64, sum packed.Sum) ([]byte, error) {
		frame, err := d.Blob(digests.Format(sum))
		if err == nil && int64(len(frame)) != n {
			err = fs.ErrNotExist
		}
		return frame, err
	})
}

// Presence adds up the words of a state file that nobody has to have open:
// bytes of data that are present, and whether all of the file is verified. It
// changes nothing. The error is ErrDamaged.
func (d *Dir) Presence(sf io.ReaderAt, key string) (r *Record, local int64, verified bool, err error) {
	r, rest, f, err := d.openRecord(key)
	if err != nil {
		return nil, 0, false, err
	}
	defer f.Close()
	var m *sparse.Map // only the granules of a packed file need it
	if r.Packed() {
		if m, err = readMap(rest, r.Size); err != nil {
			return r, 0, false, errors.Join(ErrDamaged, err)
		}
	}
	g := r.grid(r.layout(m))
	want := header(key, g.Pieces())
	head := make([]byte, len(want))
	if _, err := sf.ReadAt(head, 0); err != nil || !bytes.Equal(head, want) {
		return r, 0, false, ErrDamaged
	}
	verified = true
	words := bufio.NewReaderSize(io.NewSectionReader(sf, StateHeader, 8*int64(g.Pieces())), 64<<10)
	var raw [8]byte
	for i := range g.Pieces() {
		if _, err := io.ReadFull(words, raw[:]); err != nil {
			return r, 0, false, errors.Join(ErrDamaged, err)
		}
		word := Word(binary.LittleEndian.Uint64(raw[:]))
		if word.Present() {
			_, n := g.Extent(i)
			local += n
		}
		verified = verified && word.Verified()
	}
	return r, local, verified, nil
}

// openRecord returns the record in KEY.meta, and a reader of the second line.
// The caller closes f.
func (d *Dir) openRecord(key string) (r *Record, rest *bufio.Reader, f *os.File, err error) {
	f, err = d.OpenFile(path.Join(Files, key+".meta"), os.O_RDONLY)
	if err != nil {
		return nil, nil, nil, err
	}
	if r, rest, err = parseRecord(f); err != nil {
		_ = f.Close()
		return nil, nil, nil, fmt.Errorf("%s.meta: %w", key, err)
	}
	return r, rest, f, nil
}

func parseRecord(in io.Reader) (*Record, *bufio.Reader, error) {
	rest := bufio.NewReaderSize(in, 64<<10)
	var line []byte
	for more := true; more; {
		chunk, err := rest.ReadSlice('\n')
		more = errors.Is(err, bufio.ErrBufferFull)
		line = append(line, chunk...)
		if err != nil && !more || len(line) > mostRecord {
			return nil, nil, ErrDamaged
		}
	}
	r := &Record{}
	if err := json.Unmarshal(line, r); err != nil || r.Version != recordVersion {
		return nil, nil, ErrDamaged
	}
	for i := range r.Parts {
		p := &r.Parts[i]
		if p.PieceSize <= 0 || p.PieceSize > WholeLimit || p.Length < 0 || p.Length > sparse.MaxSize {
			return nil, nil, ErrDamaged
		}
		if p.Encoding == layout.Packed.String() &&
			(len(r.Parts) > 1 || packed.CheckGranule(p.PieceSize) != nil || packed.SlotCount(r.Size, p.PieceSize) > packed.MaxSlots) {
			return nil, nil, ErrDamaged
		}
	}
	return r, rest, nil
}

// readMap reads a record's second line.
func readMap(rest io.Reader, size int64) (*sparse.Map, error) {
	text, err := io.ReadAll(io.LimitReader(rest, sparse.MaxText))
	if err != nil {
		return nil, err
	}
	return sparse.Parse(string(text), size)
}

// layout returns the file that the record describes. m may be nil if the
// record is of no packed file, and only its pieces are asked for.
func (r *Record) layout(m *sparse.Map) *layout.File {
	f := &layout.File{Name: r.Name, Map: m}
	var off int64
	for i := range r.Parts {
		p := &r.Parts[i]
		part := layout.Part{Digest: p.Digest, StoredSize: p.StoredSize, Offset: off, Length: p.Length}
		switch p.Encoding {
		case layout.Zstd.String():
			part.Encoding = layout.Zstd
		case layout.Packed.String():
			part.Encoding = layout.Packed
			f.Index = layout.NewIndex(p.Digest, 0, "", &packed.Head{Granule: p.PieceSize, Map: m}, nil) // to number its granules
		}
		f.Parts = append(f.Parts, part)
		off += p.Length
	}
	return f
}

// grid cuts the record's file f into the pieces that its state has words of.
func (r *Record) grid(f *layout.File) *Grid {
	if f.Index != nil {
		return NewGrid(f)
	}
	g := &Grid{file: f, First: []int{0}}
	for i := range r.Parts {
		p := &r.Parts[i]
		g.Size = append(g.Size, p.PieceSize)
		g.First = append(g.First, g.First[i]+int((p.Length+p.PieceSize-1)/p.PieceSize))
	}
	return g
}
