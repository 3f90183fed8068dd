package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// feed provides the bytes of one blob to an upload, in chunks of up to
// uploadChunk bytes. It keeps the first chunk in memory. So as long as only
// that chunk was used, the upload can start over even if the source can be
// read only once.
type feed struct {
	body  io.Reader                 // the bytes after the first chunk
	again func() (io.Reader, error) // sets body to the blob's start; nil if that is impossible
	buf   []byte                    // holds the first chunk; nil if the whole blob is in memory
	first []byte
	ended bool // nothing follows first

	ahead *ahead // reads body; nil until the first chunk is used
	cur   *[]byte
	used  int // chunks returned by next since start
	dirty bool
}

var (
	errOnce    = errors.New("it can be read only once")
	errStopped = errors.New("the rest is not needed")
)

// newFeed reads the first chunk of body into buf.
func newFeed(body io.Reader, again func() (io.Reader, error), buf []byte) (*feed, error) {
	f := &feed{body: body, again: again, buf: buf}
	return f, f.readFirst()
}

// memoryFeed returns a feed of a blob that is in memory.
func memoryFeed(data []byte) *feed { return &feed{first: data, ended: true} }

func (f *feed) readFirst() error {
	n, err := io.ReadFull(f.body, f.buf)
	f.first = f.buf[:n]
	f.ended = err == io.EOF || err == io.ErrUnexpectedEOF
	if err != nil && !f.ended {
		return fmt.Errorf("read blob to upload: %w", err)
	}
	return nil
}

// restartable reports whether start can return to the first byte.
func (f *feed) restartable() bool { return !f.dirty || f.again != nil }

// start returns to the first byte.
func (f *feed) start() error {
	f.used = 0
	if !f.dirty {
		return nil
	}
	if f.again == nil {
		return errOnce
	}
	f.close()
	if _, err := f.again(); err != nil {
		return fmt.Errorf("read blob to upload again: %w", err)
	}
	f.dirty = false
	return f.readFirst()
}

// next returns the next chunk, valid until the next call of next or start,
// or io.EOF. It fails when stop is closed.
func (f *feed) next(stop <-chan struct{}) ([]byte, error) {
	f.used++
	if f.used == 1 {
		if f.ahead == nil && !f.ended {
			f.ahead = readAhead(f.body)
		}
		return f.first, nil
	}
	if f.ended {
		return nil, io.EOF
	}
	f.dirty = true
	if f.cur != nil {
		f.ahead.free <- f.cur
		f.cur = nil
	}
	select {
	case p, ok := <-f.ahead.full:
		return f.took(p, ok)
	case <-stop:
		return nil, errStopped
	}
}

// took makes a chunk that was read ahead the current chunk.
func (f *feed) took(p readChunk, ok bool) ([]byte, error) {
	if !ok {
		return nil, io.EOF
	}
	f.cur = p.buf
	switch {
	case p.err != nil && p.err != io.EOF && p.err != io.ErrUnexpectedEOF:
		return nil, fmt.Errorf("read blob to upload: %w", p.err)
	case p.n == 0:
		return nil, io.EOF
	}
	return (*p.buf)[:p.n], nil
}

// drain reads the rest and returns its length in bytes.
func (f *feed) drain() (n int64, err error) {
	for {
		p, err := f.next(nil)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n += int64(len(p))
	}
}

// close stops reading.
func (f *feed) close() {
	if f.ahead == nil {
		return
	}
	if f.cur != nil {
		f.ahead.free <- f.cur
		f.cur = nil
	}
	f.ahead.close()
	f.ahead = nil
	f.dirty = true
}

// reader returns a reader of the whole blob from its first byte.
func (f *feed) reader() (io.Reader, error) {
	f.close()
	switch {
	case f.again != nil:
		body, err := f.again()
		if err != nil {
			err = fmt.Errorf("read blob to upload again: %w", err)
		}
		return body, err
	case f.dirty:
		return nil, errOnce
	}
	return io.MultiReader(bytes.NewReader(f.first), f.body), nil
}

// feedReader reads a feed as the body of one request.
type feedReader struct {
	f     *feed
	left  []byte
	n     int64 // bytes read
	ended bool  // the whole blob was read
	err   error // of the source
	stop  chan struct{}
}

func (r *feedReader) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var err error
		if r.left, err = r.f.next(r.stop); err != nil {
			r.ended = err == io.EOF
			r.err = err
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	r.n += int64(n)
	return n, nil
}

// failed returns the error of the source, or nil.
func (r *feedReader) failed() error {
	if r.ended || r.err == errStopped {
		return nil
	}
	return r.err
}
