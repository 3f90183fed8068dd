package direct

import (
	"errors"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/internal/transport"
)

// fetcher fetches units of one part with one request: several consecutive
// ones, or as a stream all from one unit on.
type fetcher struct {
	d      *Payloads
	p      *part
	stream bool
	asks   bool // its request finds out whether ranges are honoured
	then   int  // the unit after the current one
	end    int  // end of the consecutive units
	next   int  // of a stream: the first unit after those

	blob *transport.Reader // nil without a request
}

// run starts with unit i and continues while there are units to fill.
func (f *fetcher) run(i int) {
	defer f.d.ended(f)
	defer f.hangUp()
	for i >= 0 {
		data, err := f.unit(i)
		f.d.arrived(f.p, i, data, err)
		switch {
		case err != nil:
			f.rest(err)
			return
		case f.then < f.end:
			i = f.then
		case f.stream:
			f.then = max(f.then, f.next)
			i = f.d.awaitBegun(f.p, f.then)
		default:
			return
		}
		f.then++
	}
}

// rest fails the started units that will not arrive.
func (f *fetcher) rest(err error) {
	for ; f.then < f.end; f.then++ {
		f.d.arrived(f.p, f.then, nil, err)
	}
}

// arrived passes unit i to its reader, or frees its memory if the reader has
// left.
func (d *Payloads) arrived(p *part, i int, data []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := p.units[i]
	u.data, u.err = data, err
	close(u.done)
	if p.left {
		d.takeBackLocked(p, i)
		d.dispatchLocked()
	}
}

// awaitBegun blocks until a unit from i on may be filled and returns it, or
// returns -1 if none ever may.
func (d *Payloads) awaitBegun(p *part, i int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i < p.count && !d.closed && !p.left {
		if i < p.next {
			p.units[i].fetched = true
			return i
		}
		d.changed.Wait()
	}
	return -1
}

// unit returns one unit: from the cache, or else fetched and written to the
// cache.
func (f *fetcher) unit(i int) ([]byte, error) {
	release, err := f.p.claim(f.p.ctx, i)
	if err != nil {
		return nil, err
	}
	release = sync.OnceFunc(release)
	defer release()
	if data := f.p.load(i, &f.d.memory); data != nil {
		return data, nil
	}
	if f.p.packed != nil {
		return f.fetchGranules(i, release)
	}
	data, err := f.fetch(i)
	if err == nil {
		f.p.store(i, data)
	}
	return data, err
}

// fetch fetches and verifies one unit. It retries once if the bytes were
// wrong, as they may have been damaged on the way, and again while another
// mirror can be asked.
func (f *fetcher) fetch(i int) ([]byte, error) {
	off, n := f.p.extent(i)
	stored := f.d.memory.get(n)
	for bad := 0; ; {
		err := f.read(off, stored)
		if err != nil {
			f.d.memory.put(stored)
			return nil, err
		}
		data, err := f.p.finish(i, stored, &f.d.memory)
		if err == nil {
			return data, nil
		}
		if !f.blame(err) {
			bad++
		}
		f.hangUp()
		if bad > 1 {
			f.d.memory.put(stored)
			return nil, err
		}
	}
}

// read fills p with the blob's bytes from offset off.
func (f *fetcher) read(off int64, p []byte) error {
	if f.blob == nil {
		if err := f.connect(off, int64(len(p))); err != nil {
			return err
		}
	}
	f.blob.ResetTimeout()
	if skip := off - f.blob.Offset(); skip > 0 { // what a stream has passed
		if _, err := io.CopyN(io.Discard, f.blob, skip); err != nil {
			return transport.NoEOF(err)
		}
	}
	_, err := io.ReadFull(f.blob, p)
	return transport.NoEOF(err)
}

// connect requests n bytes of the blob from offset off and the consecutive
// units after them, or the whole blob if the registry sends that anyway.
func (f *fetcher) connect(off, n int64) error {
	r := transport.Range{Digest: f.p.Digest, Size: f.p.StoredSize, Off: off, N: n, Checked: !f.p.cut || f.p.sums}
	switch {
	case f.stream:
		r.Off, r.N, r.Stream = 0, f.p.StoredSize, true
	case f.then < f.end:
		last, size := f.p.extent(f.end - 1)
		r.N = last + size - off
	}
	f.blob = f.d.link.NewReader(f.p.ctx, r, transport.ReaderOptions{})
	whole, err := f.blob.Start(func() {})
	if err != nil {
		return err
	}
	if r.N < f.p.StoredSize && f.p.partial() {
		f.next, f.stream = f.d.answered(f.p, whole)
	} else {
		f.d.dispatch() // the time to an answer is known now
	}
	return nil
}

// blame reports wrong bytes to a source with mirrors, and returns whether
// another mirror is to be asked.
func (f *fetcher) blame(err error) (more bool) {
	var wrong *contentError
	return errors.As(err, &wrong) && f.d.link.Blame(f.p.Digest, f.blob.Body())
}

// hangUp ends the request.
func (f *fetcher) hangUp() {
	if f.blob != nil {
		_ = f.blob.Close() // the bytes read were verified
		f.blob = nil
	}
}
