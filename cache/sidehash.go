package cache

import (
	"crypto/sha256"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/internal/digests"
)

// sideHash hashes what passes a reader in a goroutine of its own, so that
// one stream uses two processors: hashing takes as long as all the rest.
type sideHash struct {
	blocks chan []byte // nil: nothing is hashed
	sum    chan [sha256.Size]byte
	once   sync.Once
}

// sideBlocks bounds what is read and not yet hashed, in blocks.
const (
	sideBlocks = 8
	sideBlock  = 256 << 10
)

func newSideHash(on bool) *sideHash {
	h := &sideHash{}
	if !on {
		return h
	}
	h.blocks = make(chan []byte, sideBlocks)
	h.sum = make(chan [sha256.Size]byte, 1)
	go func() {
		hash := sha256.New()
		for b := range h.blocks {
			hash.Write(b)
			buffers.Put(b)
		}
		h.sum <- [sha256.Size]byte(hash.Sum(nil))
	}()
	return h
}

// tee returns a reader of r that has what it reads hashed.
func (h *sideHash) tee(r io.Reader) io.Reader {
	if h.blocks == nil {
		return r
	}
	return &sideReader{r, h}
}

// close ends the hashing. No reader may be read after it.
func (h *sideHash) close() {
	if h.blocks != nil {
		h.once.Do(func() { close(h.blocks) })
	}
}

// digest returns the digest of all that was read; ok is false where
// nothing is hashed.
func (h *sideHash) digest() (digest string, ok bool) {
	if h.blocks == nil {
		return "", false
	}
	h.close()
	sum := <-h.sum
	return digests.Format(sum), true
}

type sideReader struct {
	r io.Reader
	h *sideHash
}

func (s *sideReader) Read(p []byte) (int, error) {
	p = p[:min(len(p), sideBlock)]
	n, err := s.r.Read(p)
	if n > 0 {
		b := buffers.Get(int64(n))
		copy(b, p[:n])
		s.h.blocks <- b
	}
	return n, err
}
