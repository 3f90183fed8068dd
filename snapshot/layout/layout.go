// Package layout defines the form of a parsed artifact: files, each a list
// of parts. Above the parser, no code depends on whether a file came from
// format v1, v2 or a cloud image; packed files differ in that they have an
// index.
//
// Three address spaces are distinct. Stored bytes are a blob's bytes in the
// registry; digests and ranges refer to them. The payload is the
// concatenation of a file's decoded parts. The file is what readers see: the
// payload spread out by the sparse map, with holes between the segments.
package layout

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// ErrContent is wrapped by every error for invalid bytes, or an invalid
// size, map or name. A retry does not help.
var ErrContent = errors.New("wrong content")

// Encoding is how a part's payload is stored.
type Encoding uint8

const (
	Raw    Encoding = iota // stored unchanged
	Zstd                   // one zstd frame
	Packed                 // granules in packs: see File.Index
)

// String returns the encoding's name for output and for hashing.
func (e Encoding) String() string {
	switch e {
	case Zstd:
		return "zstd"
	case Packed:
		return "packed"
	}
	return "raw"
}

// Part is one blob as a range of a file's payload. A packed file has a
// single part, whose bytes are in the packs of its index.
type Part struct {
	Digest     string   // of the stored blob, or of a packed file's index; "sha256:" and 64 hex digits
	StoredSize int64    // bytes in the registry; for a packed file those of its packs
	Encoding   Encoding // how Length bytes became StoredSize bytes
	Offset     int64    // where the part begins in the payload
	Length     int64    // decoded bytes
	Pieces     *Pieces  // digests of the pieces of a raw blob, or nil
}

// End returns the payload offset after the part's last byte.
func (p *Part) End() int64 { return p.Offset + p.Length }

// Pieces holds the digests of the pieces of one raw blob, from the key
// dev.epochfs.pieces of the config blob.
type Pieces struct {
	Size int64  // bytes in a piece; the last one may be shorter
	Sums []byte // sha256 sums, one after another
}

// Sum returns piece i's sha256.
func (p *Pieces) Sum(i int64) [sha256.Size]byte {
	return [sha256.Size]byte(p.Sums[i*sha256.Size:])
}

// File is one validated file of an artifact.
type File struct {
	Name      string            // a plain file name, safe to print and to create
	MediaType string            // of its first layer, from the manifest
	Mode      uint32            // permission bits of the artifact, 0777 at most
	Map       *sparse.Map       // where the payload lies in the file; never nil
	MapText   string            // the map's text in the config blob; "" for a file without one
	Records   map[string]string // further PAX records of its header in an export, or nil
	Parts     []Part            // in payload order, without gaps
	Index     *Index            // of a packed file; nil for any other
}

// Size returns the apparent size, in bytes, holes included.
func (f *File) Size() int64 { return f.Map.Size() }

// PayloadSize returns the number of bytes of decoded data.
func (f *File) PayloadSize() int64 { return f.Map.DataSize() }

// StoredSize returns the size of all parts in the registry. It counts a blob
// that occurs twice twice, and packs may be shared with other files.
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

// Digest returns the digest of the stored file if it is one blob. Otherwise
// it returns "": a split file has no digest of its own.
func (f *File) Digest() string {
	if f.Index == nil && len(f.Parts) == 1 {
		return f.Parts[0].Digest
	}
	return ""
}

// PartAt returns the index of the part that holds payload offset off, which
// must be in [0, PayloadSize).
func (f *File) PartAt(off int64) int {
	return sort.Search(len(f.Parts), func(i int) bool { return f.Parts[i].End() > off })
}

// Key returns the cache key of the file's content: a sha256 in hex over all
// that determines its bytes and their verification, which is its parts,
// their pieces and its map, but not its name, mode or media type. The same
// file has the same key in every snapshot.
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
	if f.Index != nil { // the index's digest covers all of that
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
