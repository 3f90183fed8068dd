package snapshot

import (
	"crypto/sha256"
	"hash"
	"slices"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// All files of an artifact have piece digests for one piece size: the
// smallest power of two for which they together stay short (maxPieceText).
// With a tar that can seek, all sizes are known beforehand, and so is the
// piece size. In a stream, the sizes of later files are not yet known, and
// sums over small pieces cannot be combined to sums over large ones. So a
// file is hashed for every piece size that is still possible: at least what
// the files so far need, at most what they need together with the rest of
// the memory and disks in the envelope. That is mostly two or three sizes.
// If there are more, only maxLevels of them are hashed; a file then gets the
// next larger one, and if even the largest is too small, none. Readers
// accept files without piece digests, and another size for each.
const maxLevels = 4

// pieceSlack is the size of files that the envelope does not mention, in
// bytes: state, small disks, a qcow2's own tables.
const pieceSlack = 64 << 20

// seenFiles is which of the large files that an envelope describes have come.
type seenFiles struct{ memory, disk bool }

// see notes a file by its name.
func (s *seenFiles) see(name string) {
	mt := manifest.MediaTypeForCocoonFile(name)
	s.memory = s.memory || manifest.IsMemory(name, mt)
	s.disk = s.disk || mt == manifest.MediaTypeDiskRaw || mt == manifest.MediaTypeDiskQcow2
}

// rest returns how many bytes may still come, counting at most most for the
// memory and for the disk.
func (s *seenFiles) rest(env *envelopeConfig, most int64) int64 {
	rest := int64(pieceSlack)
	if !s.memory {
		rest += min(max(env.Memory, 0), most)
	}
	if !s.disk {
		rest += min(max(env.Storage, 0), most)
	}
	return rest
}

// piecePlan records the sizes of files as they become known.
type piecePlan struct {
	seenFiles
	sizes []int64
	whole bool // sizes is complete
}

// newPiecePlan starts with the sizes of all files, or with nil if they are
// not yet known.
func newPiecePlan(sizes []int64) *piecePlan {
	return &piecePlan{sizes: sizes, whole: sizes != nil}
}

// levels returns the piece sizes to hash the next file for.
func (p *piecePlan) levels(name string, size int64, env *envelopeConfig) []int64 {
	if !p.whole {
		p.sizes = append(p.sizes, size)
		p.see(name)
	}
	if size <= minPiece {
		return nil // one piece, whatever the size
	}
	lo := fittingPiece(p.sizes)
	if p.whole {
		return []int64{lo}
	}
	return spread(lo, fittingPiece(append(slices.Clone(p.sizes), p.rest(env, maxPiece))))
}

// spread returns lo, hi and powers of two between them, maxLevels at most.
func spread(lo, hi int64) []int64 {
	steps := 0
	for lo<<steps < hi {
		steps++
	}
	var levels []int64
	for i := range min(steps+1, maxLevels) {
		at := i
		if steps >= maxLevels {
			at = (i*steps + maxLevels - 2) / (maxLevels - 1)
		}
		levels = append(levels, lo<<at)
	}
	return levels
}

// fittingPiece returns the smallest piece size with which the digests of
// files of these sizes stay short together, or maxPiece.
func fittingPiece(sizes []int64) int64 {
	for n := int64(minPiece); n < maxPiece; n *= 2 {
		var text int64
		for _, size := range sizes {
			text += pieceText(size, n)
		}
		if text < maxPieceText {
			return n
		}
	}
	return maxPiece
}

// choosePieces picks the sums of the smallest common piece size that stays
// short; if the files have none in common, it picks the next larger size for
// each.
func choosePieces(files []*storedFile) map[string]manifest.SnapshotPieces {
	largest := int64(minPiece)
	for _, f := range files {
		largest = max(largest, f.hashes.size)
	}
	for n := int64(minPiece); n == minPiece || n < largest; n *= 2 {
		if pieces, ok := piecesBy(files, n, true); ok {
			return pieces
		}
	}
	for n := int64(minPiece); n <= maxPiece; n *= 2 {
		if pieces, ok := piecesBy(files, n, false); ok {
			return pieces
		}
	}
	return nil
}

// piecesBy returns the files' pieces of n bytes, or of the next larger size
// if they need not be common. It returns false if a file has none.
func piecesBy(files []*storedFile, n int64, common bool) (map[string]manifest.SnapshotPieces, bool) {
	pieces := make(map[string]manifest.SnapshotPieces)
	var text int64
	for _, f := range files {
		if f.hashes.size == 0 {
			continue
		}
		size, sums := f.hashes.pieces(n)
		if size != n && common {
			return nil, false
		}
		if sums != nil {
			pieces[f.name] = manifest.SnapshotPieces{Size: size, SHA256: sums}
			text += pieceText(f.hashes.size, size)
		}
	}
	return pieces, text < maxPieceText
}

// blobHasher computes the digest of a blob and of its pieces, for one or
// more piece sizes.
type blobHasher struct {
	size   int64 // of the blob, as announced
	n      int64 // bytes hashed so far
	whole  hash.Hash
	levels []*pieceHasher // ascending
}

// pieceHasher hashes each piece of size bytes.
type pieceHasher struct {
	size int64
	room int64 // bytes left in the current piece
	hash hash.Hash
	sums []byte
}

func newBlobHasher(size int64, levels []int64) *blobHasher {
	h := &blobHasher{size: size, whole: sha256.New()}
	for _, n := range levels {
		if n < size { // a blob of one piece has its own digest
			h.levels = append(h.levels, &pieceHasher{size: n, room: n, hash: sha256.New()})
		}
	}
	return h
}

// apart is how many bytes are worth hashing on two processors.
const apart = 64 << 10

// Write hashes p. It never fails.
func (h *blobHasher) Write(p []byte) (int, error) {
	h.n += int64(len(p))
	if len(h.levels) == 0 || len(p) < apart {
		h.whole.Write(p)
		h.pieceWrite(p)
		return len(p), nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.pieceWrite(p)
	}()
	h.whole.Write(p)
	<-done
	return len(p), nil
}

func (h *blobHasher) pieceWrite(p []byte) {
	for _, l := range h.levels {
		l.write(p)
	}
}

func (l *pieceHasher) write(p []byte) {
	for len(p) > 0 {
		n := min(int64(len(p)), l.room)
		l.hash.Write(p[:n])
		p = p[n:]
		if l.room -= n; l.room == 0 {
			l.close()
		}
	}
}

// close ends a piece.
func (l *pieceHasher) close() {
	l.sums = l.hash.Sum(l.sums)
	l.hash.Reset()
	l.room = l.size
}

// digest returns the blob's digest, after all of it was written.
func (h *blobHasher) digest() string {
	return digests.OfHash(h.whole)
}

// pieces returns the sums over pieces of n bytes, or of the next larger
// hashed size, or nil.
func (h *blobHasher) pieces(n int64) (size int64, sums []byte) {
	if n >= h.size {
		return n, h.whole.Sum(nil)
	}
	for _, l := range h.levels {
		if l.size < n {
			continue
		}
		if l.room < l.size {
			l.close()
		}
		return l.size, l.sums
	}
	return 0, nil
}
