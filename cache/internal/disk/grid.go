package disk

import (
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

const (
	// WholeLimit is the largest part, in bytes, that is fetched and hashed as
	// a whole before a byte of it is used.
	WholeLimit = 32 << 20
	// smallBlob is the size up to which any blob is one piece.
	smallBlob = 1 << 20
	// rawPiece is the piece of a raw blob without digests of its own: small,
	// because a stray read fetches one.
	rawPiece = 128 << 10
	// FramePiece is the piece of a frame that is decoded as a stream; it is
	// fetched with all before it anyway.
	FramePiece = 1 << 20
	// mostPieces is the number of pieces of a part from which on they are made
	// larger, up to largestPiece, so that a state stays small whatever a
	// manifest claims.
	mostPieces   = 1 << 18
	largestPiece = 16 << 20
)

// Grid cuts a file's payload into pieces. No piece reaches over a part.
type Grid struct {
	file  *layout.File
	First []int   // index of each part's first piece, and the number of pieces at the end
	Size  []int64 // bytes of a piece of each part; its last piece may be shorter
}

// NewGrid returns the pieces of f.
func NewGrid(f *layout.File) *Grid {
	g := &Grid{file: f, First: make([]int, len(f.Parts)+1), Size: make([]int64, len(f.Parts))}
	if f.Index != nil {
		g.First[1], g.Size[0] = f.Index.Granules(), f.Index.Head.Granule
		return g
	}
	for i := range f.Parts {
		p := &f.Parts[i]
		g.Size[i] = pieceSize(p, len(f.Parts) > 1)
		g.First[i+1] = g.First[i] + int((p.Length+g.Size[i]-1)/g.Size[i])
	}
	return g
}

// pieceSize returns the bytes of a piece of p. split is true if p is not the
// only part of its file.
func pieceSize(p *layout.Part, split bool) int64 {
	switch {
	case p.Encoding != layout.Raw && p.Length <= WholeLimit && p.StoredSize <= WholeLimit,
		p.Encoding == layout.Raw && p.StoredSize <= smallBlob,
		p.Encoding == layout.Raw && split && p.StoredSize <= WholeLimit:
		return max(p.Length, 1)
	case p.Encoding != layout.Raw:
		return grown(FramePiece, p.Length)
	case p.Pieces != nil && p.Pieces.Size <= WholeLimit:
		return p.Pieces.Size
	}
	return grown(rawPiece, p.Length)
}

// grown returns the size of pieces of a part of the given length, n or larger.
func grown(n, length int64) int64 {
	for n < largestPiece && length/n >= mostPieces {
		n *= 2
	}
	return n
}

// Pieces returns the number of pieces.
func (g *Grid) Pieces() int { return g.First[len(g.First)-1] }

// Part returns the index of the part that piece i belongs to.
func (g *Grid) Part(i int) int {
	return sort.Search(len(g.Size), func(p int) bool { return g.First[p+1] > i })
}

// At returns the piece that holds payload offset off.
func (g *Grid) At(off int64) int {
	if g.file.Index != nil {
		return g.file.Index.At(off)
	}
	p := g.file.PartAt(off)
	return g.First[p] + int((off-g.file.Parts[p].Offset)/g.Size[p])
}

// Of returns the pieces of a part.
func (g *Grid) Of(part int) (first, end int) { return g.First[part], g.First[part+1] }

// In returns the pieces of payload [from, to), which is not empty.
func (g *Grid) In(from, to int64) (first, end int) { return g.At(from), g.At(to-1) + 1 }

// Extent returns where piece i lies in the payload.
func (g *Grid) Extent(i int) (off, n int64) {
	if g.file.Index != nil {
		return g.file.Index.Extent(i)
	}
	p := g.Part(i)
	part := &g.file.Parts[p]
	off = part.Offset + int64(i-g.First[p])*g.Size[p]
	return off, min(g.Size[p], part.End()-off)
}

// Whole reports whether the part is one piece, fetched and hashed as a whole.
func (g *Grid) Whole(part int) bool {
	if g.file.Index != nil {
		return false
	}
	p := &g.file.Parts[part]
	return g.First[part+1]-g.First[part] <= 1 && p.StoredSize <= WholeLimit && p.Length <= WholeLimit
}

// Checked reports whether each piece of a part is compared with a digest
// before it is used.
func (g *Grid) Checked(part int) bool {
	if g.Whole(part) || g.file.Index != nil {
		return true
	}
	_, ok := g.Sum(g.First[part])
	return ok
}

// AllChecked reports whether each piece of all parts is.
func (g *Grid) AllChecked() bool {
	for part := range g.Size {
		if !g.Checked(part) {
			return false
		}
	}
	return true
}

// Sum returns the digest that piece i can be checked against by itself.
// A piece that is its whole part is checked against the part's digest
// instead, and has none here.
func (g *Grid) Sum(i int) (want [32]byte, ok bool) {
	p := g.Part(i)
	pieces := g.file.Parts[p].Pieces
	if g.Whole(p) || pieces == nil || pieces.Size != g.Size[p] {
		return want, false
	}
	return pieces.Sum(int64(i - g.First[p])), true
}

// Stretch is bytes [Off, Off+N) of a file; all of it if N is 0.
type Stretch struct{ Off, N int64 }

// Stretch returns where pieces [from, to) lie in the file. There is nothing
// but holes between them.
func (g *Grid) Stretch(from, to int) Stretch {
	start, _ := g.Extent(from)
	last, n := g.Extent(to - 1)
	s := Stretch{Off: -1}
	for run := range g.file.Map.Payload(start, 1) {
		s.Off = run.Offset
	}
	for run := range g.file.Map.Payload(last+n-1, 1) {
		s.N = run.Offset + 1 - s.Off
	}
	return s
}

// Join returns all with s, as part of the last one if it begins where that ends.
func Join(all []Stretch, s Stretch) []Stretch {
	if n := len(all); n > 0 && all[n-1].N > 0 && all[n-1].Off+all[n-1].N == s.Off {
		all[n-1].N += s.N
		return all
	}
	return append(all, s)
}

// Spread copies the payload of piece i to where it belongs in p, which is the
// file from off on.
func (g *Grid) Spread(p []byte, off int64, i int, payload []byte) {
	start, _ := g.Extent(i)
	for run := range g.file.Map.Payload(start, int64(len(payload))) {
		data := payload[:run.Length]
		payload = payload[run.Length:]
		at := run.Offset - off
		if at < 0 {
			data = data[min(-at, int64(len(data))):]
			at = 0
		}
		if at < int64(len(p)) {
			copy(p[at:], data)
		}
	}
}

// RoomFor returns how many bytes of blocks a piece of n bytes may take: a page
// at each end of each of its runs may be new.
func (g *Grid) RoomFor(i int, n int64) int64 {
	off, _ := g.Extent(i)
	var runs int64
	for range g.file.Map.Payload(off, n) {
		runs++
	}
	return n + runs*pageSize
}

// pageSize is the block size that file systems use, in general.
const pageSize = 4096
