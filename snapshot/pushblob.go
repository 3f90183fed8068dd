package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// smallBlob is the size up to which a blob is held in memory instead of
// being spooled or streamed, in bytes: its digest is then known before it is
// sent. Only tests change it.
var smallBlob int64 = 16 << 20

// store uploads one file in format v1: one blob, unchanged.
func (u *push) store(ctx context.Context, f *storedFile, e *exportEntry, levels []int64) error {
	var err error
	switch {
	case e.size <= smallBlob:
		err = u.putSmall(ctx, f, e, levels)
	case e.again != nil:
		err = u.putTwice(ctx, f, e, levels)
	default:
		p := u.src.newPayload(ctx, e, e.size, levels)
		err = u.putStream(ctx, p, p.body(), func() string { return p.h.digest() })
		p.finish()
		f.hashes = p.h
	}
	if err != nil {
		return err
	}
	f.layers = []manifest.Descriptor{{
		MediaType:   manifest.MediaTypeForCocoonFile(e.name),
		Digest:      f.hashes.digest(),
		Size:        e.size,
		Annotations: map[string]string{manifest.AnnotationTitle: e.name},
	}}
	u.progress(f)
	return nil
}

// putSmall uploads a file from memory.
func (u *push) putSmall(ctx context.Context, f *storedFile, e *exportEntry, levels []int64) error {
	p := u.src.newPayload(ctx, e, e.size, levels)
	data := make([]byte, e.size)
	if _, err := io.ReadFull(p, data); err != nil && e.size > 0 {
		return err
	}
	p.finish()
	f.hashes = p.h
	return u.putBytes(ctx, p.h.digest(), data)
}

// putTwice reads a file of a seekable tar twice: to hash it and to send it.
func (u *push) putTwice(ctx context.Context, f *storedFile, e *exportEntry, levels []int64) error {
	p := u.src.newPayload(ctx, e, e.size, levels)
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{p}, make([]byte, payloadRead)); err != nil {
		return err
	}
	f.hashes = p.h
	digest := p.h.digest()
	if _, err := e.again.Seek(0, io.SeekStart); err != nil {
		return asInput(err)
	}
	return u.put(ctx, digest, e.size, func() error {
		body := u.counted(e.again)
		if up, ok := u.up.(hashedUploader); ok {
			return up.PutHashed(ctx, u.opts.Name, digest, body, e.size)
		}
		return u.up.PutBlob(ctx, u.opts.Name, digest, body, e.size)
	})
}

// putStream sends a part of a file, or what body makes of it, as a stream.
// digest returns body's digest after it was read to its end.
func (u *push) putStream(ctx context.Context, p *payload, body io.Reader, digest func() string) error {
	counted := u.counted(body)
	var size int64
	var err error
	switch up := u.up.(type) {
	case digestUploader:
		if u.opts.DryRun {
			return u.wouldStream(ctx, body, digest)
		}
		size, err = up.UploadStream(ctx, u.opts.Name, counted, digest)
	case StreamUploader:
		if u.opts.DryRun {
			return u.wouldStream(ctx, body, digest)
		}
		var got string
		got, size, err = up.UploadBlob(ctx, u.opts.Name, counted)
		if err == nil && got != digest() {
			err = fmt.Errorf("the registry stored %d bytes as %s, but %d were sent as %s", size, got, p.h.n, digest())
		}
	default:
		return u.putSpooled(ctx, body, digest)
	}
	if p.err != nil {
		return p.err // the uploader's error is a consequence
	}
	if err != nil {
		return u.onlyOnce(p, fmt.Errorf("upload blob: %w", err))
	}
	if p.h.n != p.size {
		return fmt.Errorf("the registry took %d bytes, but the source gave %d of %d", size, p.h.n, p.size)
	}
	u.blobs.count(digest(), size, true)
	return nil
}

// onlyOnce adds a remedy to the error of an upload that could not start
// over.
func (u *push) onlyOnce(p *payload, err error) error {
	var t interface{ Temporary() bool }
	if _, ok := p.body().(io.Seeker); ok || !errors.As(err, &t) || !t.Temporary() {
		return err
	}
	return fmt.Errorf("%w; %w", err, errReadOnce)
}

// wouldStream reads what a dry run does not send.
func (u *push) wouldStream(ctx context.Context, body io.Reader, digest func() string) error {
	size, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{u.counted(body)}, make([]byte, payloadRead))
	if err != nil {
		return err
	}
	there, err := u.there(ctx, digest())
	if err == nil {
		u.blobs.count(digest(), size, !there)
	}
	return err
}

// putSpooled writes a blob to disk first, for an Uploader that needs the
// digest first.
func (u *push) putSpooled(ctx context.Context, body io.Reader, digest func() string) error {
	tmp, err := u.opts.newSpool()
	if err != nil {
		return err
	}
	defer tmp.close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.NewOffsetWriter(tmp.f, 0)}, struct{ io.Reader }{body}, make([]byte, payloadRead))
	if err != nil && !isInput(err) {
		return fmt.Errorf("spool: %w", err)
	}
	if err != nil {
		return err
	}
	return u.put(ctx, digest(), n, func() error {
		return u.up.PutBlob(ctx, u.opts.Name, digest(), u.counted(io.NewSectionReader(tmp.f, 0, n)), n)
	})
}

// putBytes uploads a blob from memory, once, unless the registry has it or
// can mount it. Nothing reads data after putBytes has returned.
func (u *push) putBytes(ctx context.Context, digest string, data []byte) error {
	size := int64(len(data))
	lender, ok := u.up.(bytesUploader)
	if !ok || u.opts.DryRun {
		return u.put(ctx, digest, size, func() error {
			err := u.up.PutBlob(ctx, u.opts.Name, digest, bytes.NewReader(data), size)
			if err == nil {
				u.onBytes(size)
			}
			return err
		})
	}
	return u.blobs.once(ctx, digest, func() error {
		there, err := lender.PutMissing(ctx, u.opts.Name, u.opts.MountFrom, digest, data)
		if err != nil {
			return fmt.Errorf("put blob %s: %w", digest, err)
		}
		u.onBytes(size)
		u.blobs.count(digest, size, !there)
		return nil
	})
}

// put uploads a blob once, unless the registry has it or can mount it from
// another repository.
func (u *push) put(ctx context.Context, digest string, size int64, send func() error) error {
	return u.blobs.once(ctx, digest, func() error {
		there, err := u.there(ctx, digest)
		if err != nil {
			return err
		}
		if there || u.opts.DryRun {
			u.onBytes(size)
		} else if err := send(); err != nil {
			return fmt.Errorf("put blob %s: %w", digest, err)
		}
		u.blobs.count(digest, size, !there)
		return nil
	})
}

// there reports whether the registry has a blob, after mounting it from
// another repository if possible; in a dry run it only asks.
func (u *push) there(ctx context.Context, digest string) (bool, error) {
	exists, err := u.up.BlobExists(ctx, u.opts.Name, digest)
	if err != nil {
		return false, fmt.Errorf("check blob %s: %w", digest, err)
	}
	if exists || u.opts.MountFrom == "" {
		return exists, nil
	}
	if u.opts.DryRun {
		exists, err = u.up.BlobExists(ctx, u.opts.MountFrom, digest)
	} else if m, ok := u.up.(BlobMounter); ok {
		exists, err = m.MountBlob(ctx, u.opts.Name, digest, u.opts.MountFrom)
	}
	if err != nil {
		return false, fmt.Errorf("mount blob %s from %s: %w", digest, u.opts.MountFrom, err)
	}
	return exists, nil
}

func (u *push) onBytes(n int64) {
	if u.opts.OnBytes != nil {
		u.opts.OnBytes(n)
	}
}

// counted reports to OnBytes what is read. It can seek if r can.
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
