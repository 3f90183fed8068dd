package direct

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

// reader reads one file's payload.
type reader struct {
	d         *Payloads
	ctx       context.Context
	part, end int // index of the part that is being read, and the end of the file's parts
	open      *partReader
	err       error // sticky
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, r.err
	}
	for r.enter() {
		n, err := r.open.Read(p)
		r.left(err)
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// WriteTo writes the rest of the payload, without a copy if units are
// payload. If it returns nil, everything was verified.
func (r *reader) WriteTo(w io.Writer) (n int64, err error) {
	var buf []byte
	for r.enter() {
		var data []byte
		if r.open.plain {
			data, err = r.open.next()
		} else {
			if buf == nil {
				buf = make([]byte, unitLeast)
			}
			var k int
			k, err = r.open.Read(buf)
			data = buf[:k]
		}
		k, writeErr := w.Write(data)
		n += int64(k)
		if writeErr != nil {
			r.err = writeErr
			break
		}
		r.left(err)
	}
	if r.err == io.EOF {
		return n, nil
	}
	return n, r.err
}

// enter opens the current part, unless it is open. It returns false at the
// payload's end or after an error, which r.err holds.
func (r *reader) enter() bool {
	if r.err == nil && r.open == nil {
		if r.part == r.end {
			r.err = io.EOF
		} else {
			r.open, r.err = r.d.openPart(r.ctx, r.part)
		}
	}
	return r.err == nil
}

// left handles the end of a read of the open part.
func (r *reader) left(err error) {
	if err == io.EOF {
		err = r.endPart()
	}
	r.err = err
}

// endPart goes on to the next part if all of this one was right.
func (r *reader) endPart() error {
	if err := r.open.finish(); err != nil {
		return err
	}
	r.open.close()
	r.open = nil
	r.part++
	r.d.passed(r.part)
	return nil
}

// Close does not end the requests, which also serve the files after this
// one.
func (r *reader) Close() error {
	if r.open != nil {
		r.open.close()
		r.open = nil
	}
	if r.err == nil {
		r.err = errors.New("read of a closed payload")
	}
	r.d.leave(r.part, r.end)
	r.part = r.end
	return nil
}

// leave abandons parts [from, to), which will not be read: it drops what was
// fetched of them, and the rest is not fetched.
func (d *Payloads) leave(from, to int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.parts[from:to] {
		p.left = true
		if p.stop != nil {
			p.stop()
		}
		for i, u := range p.units {
			select {
			case <-u.done:
				d.takeBackLocked(p, i)
			default:
				if !u.fetched {
					d.takeBackLocked(p, i)
				}
			}
		}
	}
	d.head = max(d.head, to)
	d.changed.Broadcast()
	d.dispatchLocked()
}

// takeBackLocked frees the memory of unit i, which will not be read.
func (d *Payloads) takeBackLocked(p *part, i int) {
	u := p.units[i]
	if u.data != nil {
		d.memory.put(u.data)
	}
	d.free += u.weight
	delete(p.units, i)
}

// passed makes part i the head.
func (d *Payloads) passed(i int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.parts[i-1]; p.stop != nil {
		p.stop() // frees the context's resources
	}
	d.head = i
	d.dispatchLocked()
}

// partReader reads one part's payload.
type partReader struct {
	units   *unitReader
	payload io.Reader
	decoder io.Closer // nil if units are payload, or are stored raw
	hash    hash.Hash // over the stored bytes; nil if each unit was verified
	left    int64     // of the payload
	index   int       // in Payloads.parts
	release func()    // of a frame that is written to the cache as it is read; may be nil
	plain   bool      // units are payload: next returns them
}

func (d *Payloads) openPart(ctx context.Context, i int) (*partReader, error) {
	p := d.parts[i]
	u := &unitReader{d: d, p: p, ctx: ctx}
	r := &partReader{units: u, payload: u, left: p.Length, index: i}
	if p.local != nil {
		r.payload = p.local
		return r, nil
	}
	r.plain = p.plain()
	if p.cut && !p.sums {
		r.hash = sha256.New()
		r.payload = io.TeeReader(u, r.hash)
	}
	if p.cut && p.Encoding != layout.Raw {
		z, err := zstdframe.NewReader(r.payload, p.Length)
		if err != nil {
			return nil, u.blame(err)
		}
		r.payload, r.decoder = z, z
		if p.keep != nil {
			r.payload, r.release = p.keepPassing(z)
		}
	}
	return r, nil
}

func (r *partReader) Read(p []byte) (int, error) {
	n, err := r.payload.Read(p)
	r.left -= int64(n)
	if err != nil && err != io.EOF && r.units.p.local != nil {
		if err = r.refetch(); err == nil && n == 0 {
			return r.Read(p)
		}
		return n, err
	}
	if err != nil && err != io.EOF {
		if k := r.units.p.keep; k != nil && errors.Is(err, zstdframe.ErrFrame) {
			k.Drop(r.units.p.index)
		}
		err = r.units.blame(err)
	}
	return n, err
}

// refetch reads the whole part from the registry after the local copy could
// not be read.
func (r *partReader) refetch() error {
	d, done, ctx := r.units.d, r.units.p.Length-r.left, r.units.ctx
	d.mu.Lock()
	d.parts[r.index] = d.parts[r.index].instead
	d.dispatchLocked()
	d.mu.Unlock()
	again, err := d.openPart(ctx, r.index)
	if err != nil {
		return err
	}
	*r = *again
	r.plain = false // its reader has begun to use Read
	if _, err = io.CopyN(io.Discard, r, done); err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next returns the rest of a unit, valid until the next call.
func (r *partReader) next() ([]byte, error) {
	if err := r.units.fill(); err != nil {
		if err != io.EOF {
			err = r.units.blame(err)
		}
		return nil, err
	}
	data := r.units.data
	r.units.data = nil
	if r.hash != nil {
		r.hash.Write(data)
	}
	r.left -= int64(len(data))
	return data, nil
}

// finish returns an error unless the part was complete and right.
func (r *partReader) finish() error {
	p := r.units.p
	wrong := r.left != 0 || r.hash != nil && digests.OfHash(r.hash) != p.Digest
	switch {
	case p.keep == nil || r.hash == nil:
	case wrong:
		p.keep.Drop(p.index)
	default:
		p.keep.Vouch(p.index)
	}
	if wrong {
		return p.wrong()
	}
	return nil
}

func (r *partReader) close() {
	if r.decoder != nil {
		_ = r.decoder.Close() // frees memory
	}
	if r.release != nil {
		r.release()
	}
	r.units.release()
}

// unitReader reads the units of a part.
type unitReader struct {
	d    *Payloads
	p    *part
	ctx  context.Context
	i    int
	unit *unit // unit i, once it has arrived
	data []byte
}

func (u *unitReader) Read(p []byte) (int, error) {
	if err := u.fill(); err != nil {
		return 0, err
	}
	n := copy(p, u.data)
	u.data = u.data[n:]
	return n, nil
}

// fill makes data available, from the next unit if this one was read.
func (u *unitReader) fill() error {
	for len(u.data) == 0 {
		u.release()
		if u.i == u.p.count {
			return io.EOF
		}
		unit, err := u.d.await(u.ctx, u.p, u.i)
		if err != nil {
			return err
		}
		u.unit, u.data = unit, unit.data
	}
	return nil
}

// await waits for unit i, the next to be read.
func (d *Payloads) await(ctx context.Context, p *part, i int) (*unit, error) {
	d.mu.Lock()
	u := p.unitLocked(i)
	d.mu.Unlock()
	select {
	case <-u.done:
		return u, u.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-d.ctx.Done():
		return nil, d.ctx.Err()
	}
}

// release frees the memory of the unit that was read.
func (u *unitReader) release() {
	if u.unit == nil {
		return
	}
	d, p := u.d, u.p
	d.memory.put(u.unit.data)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(p.units, u.i)
	d.free += u.unit.weight
	u.i++
	p.read = u.i
	u.unit, u.data = nil, nil
	d.dispatchLocked()
}

// blame adds the blob to err, and makes a bad frame an ErrContent.
func (u *unitReader) blame(err error) error {
	var wrong *contentError
	if errors.As(err, &wrong) {
		return err // names the blob itself
	}
	if errors.Is(err, zstdframe.ErrFrame) {
		err = fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	return fmt.Errorf("%q, blob %s: %w", u.p.name, u.p.Digest, err)
}
