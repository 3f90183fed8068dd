package snapshot

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
)

// frameBody is a stretch of a file's payload, encoded as it is read, as
// the body of an upload.
type frameBody struct {
	p    *payload
	enc  *zstdframe.Encoder // nil: as it is
	r    io.Reader
	hash hash.Hash
	n    int64
}

// begin makes the next byte the first.
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

// frameSeeker is a frameBody that can begin anew.
type frameSeeker struct{ *frameBody }

// Seek goes to the start, or tells where it is.
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
