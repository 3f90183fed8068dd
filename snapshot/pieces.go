package snapshot

import (
	"crypto/sha256"
	"encoding/base64"
	"math/bits"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	minPiece = 256 << 10 // bytes: the smallest piece that has a digest
	maxPiece = 1 << 40   // bytes: nothing is cut into larger ones

	// maxPieceText is what the digests of all pieces, in base64, must stay
	// under, so that a config blob that others read stays small.
	maxPieceText = 256 << 10
)

// piecesOf is the piece digests that the config has for a blob of size
// bytes; nil where it has none.
func piecesOf(cfg *manifest.SnapshotConfig, title string, size int64) (*layout.Pieces, error) {
	p, ok := cfg.Pieces[title]
	if !ok {
		return nil, nil
	}
	if p.Size < minPiece || p.Size > maxPiece || bits.OnesCount64(uint64(p.Size)) != 1 {
		return nil, wrong("pieces of %d bytes", p.Size)
	}
	if want := pieceCount(size, p.Size) * sha256.Size; int64(len(p.SHA256)) != want {
		return nil, wrong("piece digests of %d bytes, want %d", len(p.SHA256), want)
	}
	return &layout.Pieces{Size: p.Size, Sums: p.SHA256}, nil
}

// pieceCount is how many pieces of n bytes a blob has.
func pieceCount(size, n int64) int64 { return (size + n - 1) / n }

// pieceText is the length of the digests' text.
func pieceText(size, n int64) int64 {
	return int64(base64.StdEncoding.EncodedLen(int(pieceCount(size, n) * sha256.Size)))
}
