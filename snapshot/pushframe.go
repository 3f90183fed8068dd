package snapshot

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
)

// frameBody is the body of an upload that encodes a part of a file's payload
// as it is read.
type frameBody struct {
	p    *payload
	enc  *zstdframe.Encoder // nil for no encoding
	r    io.Reader
	hash hash.Hash
	n    int64
}

// begin starts over at the first byte.
func (b *frameBody) begin() error {
	b.r, b.n, b.hash = b.p, 0, sha256.New()
	if b.enc == nil {
		return nil
	}
	var err error
	b.r, err = b.enc.Stream(b.p, b.p.size)
	return err
}

// Read reads and hashes encoded bytes.
func (b *frameBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.hash.Write(p[:n])
	b.n += int64(n)
	return n, err
}

func (b *frameBody) digest() string { return digests.OfHash(b.hash) }

// frameSeeker is a frameBody that can start over.
type frameSeeker struct{ *frameBody }

// Seek goes to the start, or returns the position.
func (b frameSeeker) Seek(off int64, whence int) (int64, error) {
	switch {
	case off != 0 || whence != io.SeekStart && whence != io.SeekCurrent:
		return 0, errors.ErrUnsupported
	case whence == io.SeekCurrent:
		return b.n, nil
	}
	if _, err := b.p.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return 0, b.begin()
}
