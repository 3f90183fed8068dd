package snapshot

import (
	"crypto/sha256"
	"encoding/base64"
	"math/bits"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	minPiece = 256 << 10 // bytes: the smallest piece with a digest
	maxPiece = 1 << 40   // bytes: the largest piece

	// maxPieceText bounds the digests of all pieces, in bytes of base64, so
	// that the config blob, which other tools read too, stays small.
	maxPieceText = 256 << 10
)

// piecesOf returns the config's piece digests for a blob of size bytes, or
// nil.
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

// pieceCount returns the number of pieces of n bytes in a blob.
func pieceCount(size, n int64) int64 { return (size + n - 1) / n }

// pieceText returns the length of the digests' text.
func pieceText(size, n int64) int64 {
	return int64(base64.StdEncoding.EncodedLen(int(pieceCount(size, n) * sha256.Size)))
}
