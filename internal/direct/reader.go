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

// reader is one file's payload.
type reader struct {
	d         *Payloads
	ctx       context.Context
	part, end int // the part that is being read, and where the file's parts end
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

// WriteTo writes what is left of the payload, all verified when it returns
// nil, without a copy where units are payload.
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

// enter opens the part to be read, if it is not open. It is false at the
// payload's end, or where something failed: r.err says which.
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

// left takes what a read of the open part ended with.
func (r *reader) left(err error) {
	if err == io.EOF {
		err = r.endPart()
	}
	r.err = err
}

// endPart goes on to the next part when all of this one was right.
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

// Close does not end the requests: they are for the files after this one
// too.
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

// leave gives up parts [from, to), which nobody will read: what was fetched
// of them is thrown away, and the rest is not fetched.
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

// takeBackLocked takes back the memory of unit i, which is not read.
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
		p.stop() // it only frees what belongs to the context
	}
	d.head = i
	d.dispatchLocked()
}

// partReader is one part's payload.
type partReader struct {
	units   *unitReader
	payload io.Reader
	decoder io.Closer // nil where units are payload, or stored as they are
	hash    hash.Hash // over the stored bytes; nil where each unit was checked
	left    int64     // of the payload
	index   int       // in Payloads.parts
	release func()    // of a frame that is kept as it passes; may be nil
	plain   bool      // units are payload: next gives them
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

// refetch goes on with what the registry has of a part, all of it, where
// the disk does not give back what is there.
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

// next returns what is left of a unit, to be used before the next call.
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

// finish says whether what was read to its end was all, and right.
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
		_ = r.decoder.Close() // it only gives memory back
	}
	if r.release != nil {
		r.release()
	}
	r.units.release()
}

// unitReader goes through the units of a part.
type unitReader struct {
	d    *Payloads
	p    *part
	ctx  context.Context
	i    int
	unit *unit // unit i, when it has come
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

// fill has some data, of the next unit where this one was read.
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

// release gives back the memory of the unit that was read.
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

// blame says which blob it was, and that a bad frame is wrong content.
func (u *unitReader) blame(err error) error {
	var wrong *contentError
	if errors.As(err, &wrong) {
		return err // says so itself
	}
	if errors.Is(err, zstdframe.ErrFrame) {
		err = fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	return fmt.Errorf("%q, blob %s: %w", u.p.name, u.p.Digest, err)
}
