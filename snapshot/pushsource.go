package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
)

// errReadOnce is wrapped by the error of an upload that broke off and whose
// source cannot be read again.
var errReadOnce = errors.New("the input can be read only once, and no copy was kept (spool)")

// source is the export that is pushed. If it can be opened again, the new
// export replaces the first when a blob must be sent from its start: it must
// be identical as far as the first one was read.
type source struct {
	open   func(ctx context.Context) (*exportReader, func() error, error)
	again  bool // open may be called again
	spool  *spool
	export *exportReader
	done   func() error // ends the export and returns its error
	passed []*exportEntry
}

// start opens the export.
func (s *source) start(ctx context.Context) error {
	export, done, err := s.open(ctx)
	if err != nil {
		return err
	}
	s.export, s.done = export, done
	return nil
}

// next returns the next file; the caller must read or abandon its body
// before the next call.
func (s *source) next() (*exportEntry, error) {
	e, err := s.export.next()
	if err != nil {
		return nil, err
	}
	e.sum = sha256.New()
	s.passed = append(s.passed, e)
	return e, nil
}

// rewind opens the export again and skips to payload offset off of the file
// returned last. It compares what it skips with what was read before.
func (s *source) rewind(ctx context.Context, off int64) error {
	text := s.export.text
	_ = s.done() // it was ended early, and may complain
	s.done = func() error { return nil }
	if err := s.start(ctx); err != nil {
		return &inputError{fmt.Errorf("again: %w", err)}
	}
	for i, old := range s.passed {
		e, err := s.export.next()
		if err == io.EOF {
			err = &inputError{wrong("a second export has only %d files", i)}
		}
		if err != nil {
			return err
		}
		if !e.same(old) {
			return &inputError{wrong("a second export has %q where the first had %q, or another size, mode or map", e.name, old.name)}
		}
		upTo := old.read
		if i == len(s.passed)-1 {
			upTo = off
		}
		if err := old.compare(ctx, e.body, upTo); err != nil {
			return err
		}
		old.body = e.body
	}
	if text != nil && s.export.text != nil && string(text) != string(s.export.text) {
		return &inputError{wrong("a second export has another %s", EnvelopeName)}
	}
	return nil
}

// ended reports whether the export ended or broke by itself.
func (s *source) ended() bool { return s.export.src.eof || s.export.src.err != nil }

// same compares everything except the bytes.
func (e *exportEntry) same(o *exportEntry) bool {
	return e.name == o.name && e.size == o.size && e.mode == o.mode && e.mapText == o.mapText && e.sparseSize == o.sparseSize && maps.Equal(e.records, o.records)
}

// compare reads n bytes, whose sum must be that of e.sum.
func (e *exportEntry) compare(ctx context.Context, body io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	h := sha256.New()
	buf := make([]byte, tarBuffer)
	for left := n; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := io.ReadFull(body, buf[:min(left, tarBuffer)])
		if err != nil {
			return asInput(err)
		}
		h.Write(buf[:k])
		left -= int64(k)
	}
	return sameSum(e.name, n, h, e.sum.Sum(nil))
}

func sameSum(name string, n int64, h hash.Hash, want []byte) error {
	if string(h.Sum(nil)) != string(want) {
		return &inputError{wrong("the first %d bytes of %s differ in a second export", n, name)}
	}
	return nil
}

// inputError marks a failure of the export, not of the registry.
type inputError struct{ err error }

func (e *inputError) Error() string { return "read export: " + e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

func isInput(err error) bool {
	var e *inputError
	return errors.As(err, &e)
}

// asInput marks err as a failure of the export.
func asInput(err error) error {
	if err == nil || isInput(err) {
		return err
	}
	return &inputError{err}
}

// payload is a part of a file's payload as the body of an upload. It can
// start over if its source can be read again. Its Seek goes to the start of
// the part, or returns the position, and nothing else.
type payload struct {
	ctx   context.Context
	src   *source
	e     *exportEntry
	off   int64 // offset of the part
	size  int64
	parts []int64     // sizes of pieces to hash as well
	h     *blobHasher // hashes what was read since the start
	mark  int64       // the farthest offset read before, and its sum
	sum   []byte
	err   error // error of the source, other than io.EOF
}

// newPayload returns the part of e that begins at its current position.
func (s *source) newPayload(ctx context.Context, e *exportEntry, size int64, parts []int64) *payload {
	p := &payload{ctx: ctx, src: s, e: e, off: e.read, size: size, parts: parts}
	p.reset()
	if s.spool != nil {
		s.spool.reset()
	}
	return p
}

func (p *payload) reset() {
	p.h = newBlobHasher(p.size, p.parts)
	if p.off > 0 {
		// The sum covers the whole file, for comparison.
		p.h.whole = cloneHash(p.e.sum)
	}
}

// cloneHash copies the state of a sha256, which can always be copied.
func cloneHash(h hash.Hash) hash.Hash {
	c, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic(err)
	}
	return c
}

// Read reads and hashes.
func (p *payload) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	left := p.size - p.h.n
	if left == 0 {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), left, payloadRead)]
	n, err := p.fill(b)
	p.h.Write(b[:n])
	if err == nil {
		err = p.check()
	}
	if err != nil {
		p.err = err
		return 0, err
	}
	return n, nil
}

// payloadRead is how much is read and hashed at a time, in bytes.
const payloadRead = 1 << 20

// fill reads into b, but not beyond the mark.
func (p *payload) fill(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if p.h.n < p.mark {
		b = b[:min(int64(len(b)), p.mark-p.h.n)]
	}
	var n int
	var err error
	if p.src.spool != nil && p.e.again == nil {
		n, err = p.src.spool.read(p.e.body, b, p.h.n)
	} else {
		n, err = io.ReadFull(p.e.body, b)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, asInput(err)
}

// check compares, at the mark, with what was read before.
func (p *payload) check() error {
	if p.h.n != p.mark || p.sum == nil {
		return nil
	}
	return sameSum(p.e.name, p.off+p.mark, p.h.whole, p.sum)
}

// Seek goes to the start of the part, or returns the position.
func (p *payload) Seek(off int64, whence int) (int64, error) {
	switch {
	case off != 0 || whence != io.SeekStart && whence != io.SeekCurrent:
		return 0, errors.ErrUnsupported
	case whence == io.SeekCurrent || p.h.n == 0:
		return p.h.n, nil
	case p.err != nil:
		return 0, p.err
	}
	if p.h.n > p.mark {
		p.mark, p.sum = p.h.n, p.h.whole.Sum(nil)
	}
	var err error
	switch {
	case p.e.again != nil:
		_, err = p.e.again.Seek(p.off, io.SeekStart)
	case p.src.spool != nil:
	case p.src.again:
		err = p.src.rewind(p.ctx, p.off)
	default:
		err = errReadOnce
	}
	p.reset()
	p.err = err
	return 0, err
}

// finish records that the part was read to its end.
func (p *payload) finish() {
	p.e.read = p.off + p.size
	p.e.sum = cloneHash(p.h.whole)
}

// body returns the payload for an Uploader: with Seek if it can be read
// again.
func (p *payload) body() io.Reader {
	if p.e.again != nil || p.src.spool != nil || p.src.again {
		return p
	}
	return struct{ io.Reader }{p}
}

// spool is a file with the bytes read of the current blob.
type spool struct {
	f SpoolFile
	n int64 // bytes in it
}

func (opts *PushOptions) newSpool() (*spool, error) {
	if opts.SpoolFile == nil {
		return unnamedSpool(opts.SpoolDir)
	}
	f, err := opts.SpoolFile()
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	return &spool{f: f}, nil
}

// unnamedSpool makes a spool in dir, or in os.TempDir.
func unnamedSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "epochfs-push-*")
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("spool: %w", err)
	}
	return &spool{f: f}, nil
}

func (s *spool) reset() { s.n = 0 }

// read fills b with the bytes at off of the current blob: from the file, or
// else from next.
func (s *spool) read(next io.Reader, b []byte, off int64) (int, error) {
	if off < s.n {
		n, err := s.f.ReadAt(b[:min(int64(len(b)), s.n-off)], off)
		if err != nil {
			return 0, fmt.Errorf("spool: %w", err)
		}
		return n, nil
	}
	n, err := io.ReadFull(next, b)
	if err != nil {
		return n, err
	}
	if _, err := s.f.WriteAt(b[:n], off); err != nil {
		return 0, fmt.Errorf("spool: %w", err)
	}
	s.n = off + int64(n)
	return n, nil
}

func (s *spool) close() {
	if s != nil {
		s.f.Close()
	}
}
