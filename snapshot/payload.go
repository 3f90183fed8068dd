package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// DownloaderPayloads reads payloads straight from a registry's repository,
// whole blobs one after another, and keeps nothing.
//
// It is for programs that have only a Downloader: it sends one request at a
// time, and does not repeat one that breaks off. The epochfs program reads
// through its own transport, which resumes broken requests.
func DownloaderPayloads(dl Downloader, name string) Payloads {
	return &blobPayloads{dl: dl, name: name}
}

type blobPayloads struct {
	dl   Downloader
	name string
}

func (b *blobPayloads) OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error) {
	if f.Index != nil {
		return newPackedReader(ctx, b, f), nil
	}
	return &payloadReader{ctx: ctx, src: b, parts: f.Parts}, nil
}

// payloadReader reads the parts in order. It ends a part only after its
// stored bytes had the right size and digest and decoded to the right
// length.
type payloadReader struct {
	ctx   context.Context
	src   *blobPayloads
	parts []layout.Part // still to read; the first one is open if part is not nil
	part  *partReader
	err   error // sticky
}

func (r *payloadReader) Read(p []byte) (int, error) {
	for r.err == nil {
		if err := r.ctx.Err(); err != nil {
			r.err = err
			break
		}
		if r.part == nil {
			r.err = r.next()
			continue
		}
		n, err := r.part.Read(p)
		if err == io.EOF {
			r.part.Close()
			r.part, r.parts = nil, r.parts[1:]
		} else if err != nil {
			r.err = err
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// next opens the next part that is not empty.
func (r *payloadReader) next() error {
	for len(r.parts) > 0 && r.parts[0].StoredSize == 0 && r.parts[0].Length == 0 {
		r.parts = r.parts[1:]
	}
	if len(r.parts) == 0 {
		return io.EOF
	}
	p := &r.parts[0]
	body, err := r.src.dl.GetBlob(r.ctx, r.src.name, p.Digest)
	if err != nil {
		return fmt.Errorf("get blob %s: %w", p.Digest, err)
	}
	r.part, err = newPartReader(p, body)
	return err
}

func (r *payloadReader) Close() error {
	if r.part != nil {
		r.part.Close()
		r.part = nil
	}
	if r.err == nil {
		r.err = errors.New("read of a closed payload")
	}
	return nil
}

// partReader decodes and verifies one stored blob.
type partReader struct {
	p       *layout.Part
	body    io.ReadCloser
	hash    hash.Hash
	stored  int64     // bytes of the blob read so far
	decoder io.Reader // of the stored bytes
	closer  io.Closer // of the decoder, nil for raw
	left    int64     // decoded bytes left
}

func newPartReader(p *layout.Part, body io.ReadCloser) (*partReader, error) {
	r := &partReader{p: p, body: body, hash: sha256.New(), left: p.Length}
	r.decoder = storedBytes{r}
	if p.Encoding == layout.Zstd {
		z, err := zstdframe.NewReader(storedBytes{r}, p.Length)
		if err != nil {
			body.Close()
			return nil, r.blame(err)
		}
		r.decoder, r.closer = z, z
	}
	return r, nil
}

func (r *partReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, r.end()
	}
	n, err := r.decoder.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if err == io.EOF {
		err = nil
		if n == 0 {
			err = wrong("blob %s has %d bytes, the manifest says %d", r.p.Digest, r.stored, r.p.StoredSize)
		}
	}
	if err != nil {
		return n, r.blame(err)
	}
	return n, nil
}

// end returns io.EOF if nothing follows and everything was right.
func (r *partReader) end() error {
	var more [1]byte
	n, err := io.ReadFull(r.decoder, more[:])
	switch {
	case n > 0:
		return wrong("blob %s has more than %d bytes", r.p.Digest, r.p.StoredSize)
	case err != io.EOF:
		return r.blame(err)
	case r.stored != r.p.StoredSize:
		return wrong("blob %s has %d bytes, the manifest says %d", r.p.Digest, r.stored, r.p.StoredSize)
	}
	if got := digests.OfHash(r.hash); got != r.p.Digest {
		return wrong("blob %s has digest %s", r.p.Digest, got)
	}
	return io.EOF
}

// blame adds the blob to err, and makes a bad frame an ErrContent.
func (r *partReader) blame(err error) error {
	if errors.Is(err, zstdframe.ErrFrame) {
		err = fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	return fmt.Errorf("blob %s at byte %d: %w", r.p.Digest, r.stored, err)
}

func (r *partReader) Close() error {
	if r.closer != nil {
		r.closer.Close()
	}
	return r.body.Close()
}

// storedBytes counts and hashes what the registry sends. It stops one byte
// after the size in the manifest.
type storedBytes struct{ r *partReader }

func (s storedBytes) Read(p []byte) (int, error) {
	room := s.r.p.StoredSize + 1 - s.r.stored
	if room <= 0 {
		return 0, wrong("blob %s has more than %d bytes", s.r.p.Digest, s.r.p.StoredSize)
	}
	n, err := s.r.body.Read(p[:min(int64(len(p)), room)])
	s.r.hash.Write(p[:n])
	s.r.stored += int64(n)
	return n, err
}
