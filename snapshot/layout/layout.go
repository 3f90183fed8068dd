// Package layout holds the form in which an artifact is known once it
// has been parsed: files, each a list of parts. Nobody above the parser
// asks whether a file came from format v1, v2 or a cloud image.
//
// It tells three spaces apart. Stored bytes are a blob as the registry
// has it; digests and ranges speak of them. The payload is all parts of
// a file decoded, one after another. The file is what readers see: the
// payload spread out by the sparse map, with holes between.
package layout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// ErrContent is in the chain of every error that says: these bytes, this
// size, map or name must not be. Waiting does not help against it.
var ErrContent = errors.New("wrong content")

// Encoding says how a part's payload is stored.
type Encoding uint8

const (
	Raw    Encoding = iota // stored as it is
	Zstd                   // one zstd frame
	Packed                 // granules in packs: see File.Index
)

// String returns the encoding's name, as it is printed and hashed.
func (e Encoding) String() string {
	switch e {
	case Zstd:
		return "zstd"
	case Packed:
		return "packed"
	}
	return "raw"
}

// Part is one blob as a stretch of a file's payload. A packed file is one
// part, whose bytes are in the packs of its index.
type Part struct {
	Digest     string   // of the stored blob, "sha256:" and 64 hex digits; of a packed file's index
	StoredSize int64    // bytes the registry has; of a packed file those of its packs
	Encoding   Encoding // how Length bytes became StoredSize
	Offset     int64    // where the part begins in the payload
	Length     int64    // decoded bytes
	Pieces     *Pieces  // digests of stretches of a raw blob; nil where there are none
}

// End is the payload offset after the part's last byte.
func (p *Part) End() int64 { return p.Offset + p.Length }

// Pieces are digests over stretches of one raw blob: the key
// dev.epochfs.pieces of the config blob.
type Pieces struct {
	Size int64  // bytes a piece, the last one shorter
	Sums []byte // sha256 sums, one after another
}

// Sum returns piece i's sha256.
func (p *Pieces) Sum(i int64) [sha256.Size]byte {
	return [sha256.Size]byte(p.Sums[i*sha256.Size:])
}

// File is one file of an artifact, validated.
type File struct {
	Name      string            // a plain file name, safe to print and to create
	MediaType string            // of its first layer, as the manifest has it
	Mode      uint32            // permission bits of the artifact, 0777 at most
	Map       *sparse.Map       // where the payload lies in the file; never nil
	MapText   string            // the map as the config blob has it; "" for a file without one
	Records   map[string]string // what else its header in an export tells; nil for nothing
	Parts     []Part            // in payload order, without gaps
	Index     *Index            // of a packed file; nil for any other
}

// Size is the apparent size, in bytes, holes included.
func (f *File) Size() int64 { return f.Map.Size() }

// PayloadSize is the number of bytes of data, decoded.
func (f *File) PayloadSize() int64 { return f.Map.DataSize() }

// StoredSize is what all parts take in the registry. A blob that occurs
// twice is counted twice, and packs may be shared with other files.
func (f *File) StoredSize() int64 {
	var n int64
	if f.Index != nil {
		n = f.Index.Size
	}
	for i := range f.Parts {
		n += f.Parts[i].StoredSize
	}
	return n
}

// Digest is the digest of the stored file where it is one blob, else "":
// a split file has none of its own.
func (f *File) Digest() string {
	if f.Index == nil && len(f.Parts) == 1 {
		return f.Parts[0].Digest
	}
	return ""
}

// PartAt returns the index of the part that holds payload offset off,
// which must be in [0, PayloadSize).
func (f *File) PartAt(off int64) int {
	return sort.Search(len(f.Parts), func(i int) bool { return f.Parts[i].End() > off })
}

// Key names the file's content for a cache: a sha256 in hex over all that
// decides its bytes and how they can be checked, that is its parts, their
// pieces and its map, and not its name, mode or media type. Two snapshots
// that hold the same file have one key.
func (f *File) Key() string {
	h := sha256.New()
	var b [8]byte
	num := func(n int64) {
		binary.LittleEndian.PutUint64(b[:], uint64(n))
		h.Write(b[:])
	}
	text := func(s string) {
		num(int64(len(s)))
		h.Write([]byte(s))
	}
	if f.Index != nil { // it has all of that in it, below one digest
		text("epochfs packed file 1")
		text(f.Index.Digest)
		return hex.EncodeToString(h.Sum(nil))
	}
	text("epochfs file 1")
	num(int64(len(f.Parts)))
	for i := range f.Parts {
		p := &f.Parts[i]
		text(p.Digest)
		text(p.Encoding.String())
		num(p.StoredSize)
		num(p.Length)
		if p.Pieces != nil {
			num(p.Pieces.Size)
			text(string(p.Pieces.Sums))
		} else {
			num(0)
		}
	}
	num(f.Map.Size())
	num(int64(f.Map.Len()))
	for _, s := range f.Map.Segments() {
		num(s.Offset)
		num(s.Length)
	}
	return hex.EncodeToString(h.Sum(nil))
}
