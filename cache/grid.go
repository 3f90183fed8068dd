package cache

import (
	"sort"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

const (
	// wholeLimit is the largest part that is fetched and hashed as a whole
	// before a byte of it is used.
	wholeLimit = 32 << 20
	// smallBlob is the size up to which any blob is one piece.
	smallBlob = 1 << 20
	// rawPiece is the piece of a raw blob without digests of its own: small,
	// because a stray read fetches one.
	rawPiece = 128 << 10
	// framePiece is the piece of a frame that is decoded as a stream; it is
	// fetched with all before it anyway.
	framePiece = 1 << 20
	// From so many pieces of a part on they are made larger, up to
	// largestPiece, so that a state stays small whatever a manifest claims.
	mostPieces   = 1 << 18
	largestPiece = 16 << 20
)

// grid cuts a file's payload into pieces. No piece reaches over a part.
type grid struct {
	file  *layout.File
	first []int   // index of each part's first piece; one more at the end: their number
	size  []int64 // bytes a piece, for each part; its last piece may be shorter
}

func newGrid(f *layout.File) *grid {
	g := &grid{file: f, first: make([]int, len(f.Parts)+1), size: make([]int64, len(f.Parts))}
	if f.Index != nil {
		g.first[1], g.size[0] = f.Index.Granules(), f.Index.Head.Granule
		return g
	}
	for i := range f.Parts {
		p := &f.Parts[i]
		g.size[i] = pieceSize(p, len(f.Parts) > 1)
		g.first[i+1] = g.first[i] + int((p.Length+g.size[i]-1)/g.size[i])
	}
	return g
}

func pieceSize(p *layout.Part, split bool) int64 {
	switch {
	case p.Encoding != layout.Raw && p.Length <= wholeLimit && p.StoredSize <= wholeLimit,
		p.Encoding == layout.Raw && p.StoredSize <= smallBlob,
		p.Encoding == layout.Raw && split && p.StoredSize <= wholeLimit:
		return max(p.Length, 1)
	case p.Encoding != layout.Raw:
		return grown(framePiece, p.Length)
	case p.Pieces != nil && p.Pieces.Size <= wholeLimit:
		return p.Pieces.Size
	}
	return grown(rawPiece, p.Length)
}

// grown is the size of pieces of a part of the given length, n or larger.
func grown(n, length int64) int64 {
	for n < largestPiece && length/n >= mostPieces {
		n *= 2
	}
	return n
}

func (g *grid) pieces() int { return g.first[len(g.first)-1] }

// part returns the index of the part that piece i belongs to.
func (g *grid) part(i int) int {
	return sort.Search(len(g.size), func(p int) bool { return g.first[p+1] > i })
}

// at returns the piece that holds payload offset off.
func (g *grid) at(off int64) int {
	if g.file.Index != nil {
		return g.file.Index.At(off)
	}
	p := g.file.PartAt(off)
	return g.first[p] + int((off-g.file.Parts[p].Offset)/g.size[p])
}

// extent returns where piece i lies in the payload.
func (g *grid) extent(i int) (off, n int64) {
	if g.file.Index != nil {
		return g.file.Index.Extent(i)
	}
	p := g.part(i)
	part := &g.file.Parts[p]
	off = part.Offset + int64(i-g.first[p])*g.size[p]
	return off, min(g.size[p], part.End()-off)
}

// whole says that the part is one piece, fetched and hashed as a whole.
func (g *grid) whole(part int) bool {
	if g.file.Index != nil {
		return false
	}
	p := &g.file.Parts[part]
	return g.first[part+1]-g.first[part] <= 1 && p.StoredSize <= wholeLimit && p.Length <= wholeLimit
}

// checked says that each piece of a part is compared with a digest before
// it is used.
func (g *grid) checked(part int) bool {
	if g.whole(part) || g.file.Index != nil {
		return true
	}
	_, ok := g.sum(g.first[part])
	return ok
}

// allChecked says it of all parts.
func (g *grid) allChecked() bool {
	for part := range g.size {
		if !g.checked(part) {
			return false
		}
	}
	return true
}

// sum returns the digest that piece i can be checked against by itself.
// A piece that is its whole part is checked against the part's digest
// instead, and has none here.
func (g *grid) sum(i int) (want [32]byte, ok bool) {
	p := g.part(i)
	pieces := g.file.Parts[p].Pieces
	if g.whole(p) || pieces == nil || pieces.Size != g.size[p] {
		return want, false
	}
	return pieces.Sum(int64(i - g.first[p])), true
}
