package cache

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// recordVersion is the version of what stands in KEY.meta: two lines of
// JSON that say what the file is made of, for those who look at the cache
// without the artifact. The first line is a record, the second its map,
// which may be large and which most do not need.
const recordVersion = 1

// mostRecord bounds the first line.
const mostRecord = 4 << 20

type record struct {
	Version int          `json:"version"`
	Name    string       `json:"name"` // the title it was first seen under
	Size    int64        `json:"size"`
	Parts   []recordPart `json:"parts"`
	Index   *recordIndex `json:"index,omitempty"` // of a packed file
}

// recordIndex is where the index of a packed file is found.
type recordIndex struct {
	Size int64  `json:"size"` // of the index blob, in bytes
	Head string `json:"head"` // digest of its head, which is kept as a blob
}

type recordPart struct {
	Digest     string `json:"digest"`
	StoredSize int64  `json:"storedSize"`
	Encoding   string `json:"encoding"`
	Length     int64  `json:"length"`
	PieceSize  int64  `json:"pieceSize"`
}

// pieces is how many pieces the part has.
func (p *recordPart) pieces() int {
	return int((p.Length + p.PieceSize - 1) / p.PieceSize)
}

func (e *entry) record() record {
	r := record{Version: recordVersion, Name: e.file.Name, Size: e.file.Size()}
	for i := range e.file.Parts {
		p := &e.file.Parts[i]
		r.Parts = append(r.Parts, recordPart{p.Digest, p.StoredSize, p.Encoding.String(), p.Length, e.grid.size[i]})
	}
	if x := e.file.Index; x != nil {
		r.Index = &recordIndex{x.Size, x.HeadDigest}
	}
	return r
}

// writeRecord describes the file, unless it is described already.
func (e *entry) writeRecord() error {
	if _, err := e.cache.root.Lstat(e.path(".meta")); err == nil {
		return nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	if err := errors.Join(enc.Encode(e.record()), enc.Encode(e.file.Map.Segments())); err != nil {
		return err
	}
	return e.cache.writeFile(e.path(".meta"), b.Bytes())
}

// readRecord returns what KEY.meta says, and a reader for its second line.
// The caller closes the file.
func (c *Cache) readRecord(key string) (r record, rest *bufio.Reader, f *os.File, err error) {
	f, err = c.root.OpenFile(path.Join(dirFiles, key+".meta"), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return r, nil, nil, err
	}
	if r, rest, err = parseRecord(f); err != nil {
		_ = f.Close()
		return r, nil, nil, fmt.Errorf("%s.meta: %w", key, err)
	}
	return r, rest, f, nil
}

func parseRecord(in io.Reader) (r record, rest *bufio.Reader, err error) {
	rest = bufio.NewReaderSize(in, 64<<10)
	var line []byte
	for more := true; more; {
		var chunk []byte
		chunk, err = rest.ReadSlice('\n')
		more = errors.Is(err, bufio.ErrBufferFull)
		line = append(line, chunk...)
		if err != nil && !more || len(line) > mostRecord {
			return r, nil, errDamaged
		}
	}
	if err := json.Unmarshal(line, &r); err != nil || r.Version != recordVersion {
		return r, nil, errDamaged
	}
	for i := range r.Parts {
		if p := &r.Parts[i]; p.PieceSize <= 0 || p.PieceSize > wholeLimit || p.Length < 0 || p.Length > sparse.MaxSize {
			return r, nil, errDamaged
		}
		if p := &r.Parts[i]; p.Encoding == layout.Packed.String() &&
			(len(r.Parts) > 1 || packed.CheckGranule(p.PieceSize) != nil || packed.SlotCount(r.Size, p.PieceSize) > packed.MaxSlots) {
			return r, nil, errDamaged
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

// layout makes the parts of a record a file again, to read its payload by.
func (r *record) layout(m *sparse.Map) *layout.File {
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

// grid cuts the record's file f into the pieces that its state tells of.
func (r *record) grid(f *layout.File) *grid {
	if f.Index != nil {
		return newGrid(f)
	}
	g := &grid{file: f, first: []int{0}}
	for i := range r.Parts {
		g.size = append(g.size, r.Parts[i].PieceSize)
		g.first = append(g.first, g.first[i]+r.Parts[i].pieces())
	}
	return g
}
