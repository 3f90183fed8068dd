package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// smallBlob is what is held in memory rather than spooled or streamed, in
// bytes: its digest is then known before it is sent.
const smallBlob = 4 << 20

// store uploads one file as format v1 has it: one blob, as it is.
func (u *push) store(ctx context.Context, e *exportEntry) (*storedFile, error) {
	h := newBlobHasher(e.size, u.plan.levels(e.name, e.size, &u.export.envelope.Config))
	var err error
	stream, streams := u.up.(StreamUploader)
	switch {
	case e.again != nil:
		err = u.putTwice(ctx, e, h)
	case e.size <= smallBlob:
		err = u.putSmall(ctx, e, h)
	case streams:
		err = u.putStream(ctx, stream, e, h)
	default:
		err = u.putSpooled(ctx, e, h)
	}
	if err != nil {
		return nil, err
	}
	return &storedFile{
		name: e.name,
		layers: []manifest.Descriptor{{
			MediaType:   manifest.MediaTypeForCocoonFile(e.name),
			Digest:      h.digest(),
			Size:        e.size,
			Annotations: map[string]string{manifest.AnnotationTitle: e.name},
		}},
		meta:   manifest.SnapshotFile{Mode: e.mode, SparseMap: e.mapText, SparseSize: e.sparseSize},
		hashes: h,
	}, nil
}

// putTwice reads a file's place in a seekable tar once to hash it and
// once to send it.
func (u *push) putTwice(ctx context.Context, e *exportEntry, h *blobHasher) error {
	if err := fill(ctx, h, e, nil); err != nil {
		return err
	}
	if _, err := e.again.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return u.put(ctx, h.digest(), e.again, e.size)
}

func (u *push) putSmall(ctx context.Context, e *exportEntry, h *blobHasher) error {
	var buf bytes.Buffer
	if err := fill(ctx, h, e, &buf); err != nil {
		return err
	}
	return u.put(ctx, h.digest(), bytes.NewReader(buf.Bytes()), e.size)
}

// putSpooled writes a file to disk first, for an Uploader that wants to
// know the digest.
func (u *push) putSpooled(ctx context.Context, e *exportEntry, h *blobHasher) error {
	tmp, err := os.CreateTemp(u.opts.SpoolDir, "epochfs-push-*")
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	defer tmp.Close()
	if err := os.Remove(tmp.Name()); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	if err := fill(ctx, h, e, tmp); err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return u.put(ctx, h.digest(), tmp, e.size)
}

// putStream sends a file as it comes and compares digests afterwards.
func (u *push) putStream(ctx context.Context, up StreamUploader, e *exportEntry, h *blobHasher) error {
	in := &inputReader{r: e.body}
	got, size, err := up.UploadBlob(ctx, u.opts.Name, u.counted(io.TeeReader(in, h)))
	if in.err != nil {
		return in.err // what the uploader made of it is a consequence
	}
	if err != nil {
		return fmt.Errorf("upload blob: %w", err)
	}
	if h.n != e.size || size != e.size || got != h.digest() {
		return fmt.Errorf("the registry took %d bytes as %s, sent were %d of %d as %s", size, got, h.n, e.size, h.digest())
	}
	return nil
}

// inputReader remembers the input's own error.
type inputReader struct {
	r   io.Reader
	err error
}

func (i *inputReader) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil && err != io.EOF {
		i.err = err
	}
	return n, err
}

// fill reads an entry to its end into the hasher and w, which may be nil.
func fill(ctx context.Context, h *blobHasher, e *exportEntry, w io.Writer) error {
	buf := make([]byte, min(e.size, tarBuffer)+1)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := e.body.Read(buf)
		h.Write(buf[:n])
		if w != nil && n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return fmt.Errorf("spool: %w", err)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil && isInput(err) {
			return err
		}
		if err != nil {
			return &inputError{err}
		}
	}
	if h.n != e.size {
		return &inputError{fmt.Errorf("%d bytes of %d: %w", h.n, e.size, io.ErrUnexpectedEOF)}
	}
	return nil
}

// put uploads a blob that the registry does not have yet.
func (u *push) put(ctx context.Context, dgst string, body io.ReadSeeker, size int64) error {
	exists, err := u.up.BlobExists(ctx, u.opts.Name, dgst)
	if err != nil {
		return fmt.Errorf("check blob %s: %w", dgst, err)
	}
	if exists {
		return nil
	}
	if err := u.up.PutBlob(ctx, u.opts.Name, dgst, u.counted(body), size); err != nil {
		return fmt.Errorf("put blob %s: %w", dgst, err)
	}
	return nil
}

// counted tells OnBytes what is read. What can seek still can.
func (u *push) counted(r io.Reader) io.Reader {
	if u.opts.OnBytes == nil {
		return r
	}
	c := &countingBody{r: r, on: u.opts.OnBytes}
	if s, ok := r.(io.Seeker); ok {
		return &countingSeeker{countingBody: c, s: s}
	}
	return c
}

type countingBody struct {
	r  io.Reader
	n  int64
	on func(int64)
}

func (c *countingBody) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.n += int64(n)
		c.on(int64(n))
	}
	return n, err
}

type countingSeeker struct {
	*countingBody
	s io.Seeker
}

func (c *countingSeeker) Seek(off int64, whence int) (int64, error) {
	at, err := c.s.Seek(off, whence)
	if err == nil && at != c.n {
		c.on(at - c.n)
		c.n = at
	}
	return at, err
}

// inputError says that it was the export that failed, not the registry.
type inputError struct{ err error }

func (e *inputError) Error() string { return "read export: " + e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

func isInput(err error) bool {
	var e *inputError
	return errors.As(err, &e)
}
