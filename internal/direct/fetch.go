package direct

import (
	"errors"
	"io"

	"github.com/cocoonstack/epochfs/internal/transport"
)

// fetcher fetches units of one part with one request: some in a row, or
// as a stream all from some unit on.
type fetcher struct {
	d      *Payloads
	p      *part
	stream bool
	asks   bool // its request is to tell whether ranges are honoured
	then   int  // the unit after the one it is at
	end    int  // after the last of those in a row
	next   int  // of a stream: the first unit after those

	blob *transport.Reader // nil without a request
}

// run begins with unit i and goes on while there is something to fill.
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

// rest fails the units that were begun and will not come.
func (f *fetcher) rest(err error) {
	for ; f.then < f.end; f.then++ {
		f.d.arrived(f.p, f.then, nil, err)
	}
}

// arrived hands unit i to its reader, or takes its memory back if that has
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

// awaitBegun blocks until unit i may be filled; -1 if it never will.
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

// unit gets one unit: from where it is kept, or else fetches it and keeps
// it.
func (f *fetcher) unit(i int) ([]byte, error) {
	release, err := f.p.claim(f.p.ctx, i)
	if err != nil {
		return nil, err
	}
	defer release()
	if data := f.p.load(i, &f.d.memory); data != nil {
		return data, nil
	}
	fetch := f.fetch
	if f.p.packed != nil {
		fetch = f.fetchGranules
	}
	data, err := fetch(i)
	if err == nil {
		f.p.store(i, data)
	}
	return data, err
}

// fetch fetches one unit and checks it. Bytes may be damaged on the way
// once; when the same unit is wrong a second time, and there is nowhere
// else to get it from, that is the error.
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

// read fills p with the blob's bytes from off on.
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

// connect asks for n bytes of the blob from off on and for the units in a
// row after them, or for all of the blob if that is known to be what comes.
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
		f.d.dispatch() // it is known now how long an answer takes
	}
	return nil
}

// blame tells a source with mirrors whose bytes were wrong, and reports
// whether another is to be asked.
func (f *fetcher) blame(err error) (more bool) {
	var wrong *contentError
	return errors.As(err, &wrong) && f.d.link.Blame(f.p.Digest, f.blob.Body())
}

// hangUp ends the request.
func (f *fetcher) hangUp() {
	if f.blob != nil {
		_ = f.blob.Close() // what was read was checked
		f.blob = nil
	}
}
