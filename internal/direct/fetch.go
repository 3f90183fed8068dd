package direct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

const (
	// Bounds of the wait between two tries.
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
	// stallAfter is how long a request may bring nothing before it is
	// given up and made again.
	stallAfter = 10 * time.Second
	// step is how much of a unit has to come to count as progress: a
	// registry that sends a little with each request and then stops has
	// stopped.
	step = 1 << 20
)

var errStalled = errors.New("request brought nothing for a while")

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

	body   *watched           // nil without a connection
	at     int64              // where the body's next byte lies in the blob
	cancel context.CancelFunc // of the request

	since  time.Time // when a unit was begun, or a step of it last came
	failed int       // tries in a row that brought none
	bad    int       // times that the bytes were wrong
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

// arrived hands unit i to who reads it.
func (d *Payloads) arrived(p *part, i int, data []byte, err error) {
	d.mu.Lock()
	u := p.units[i]
	d.mu.Unlock()
	u.data, u.err = data, err
	close(u.done)
}

// awaitBegun waits until unit i may be filled; -1 when it never will.
func (d *Payloads) awaitBegun(p *part, i int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i < p.count {
		if d.closed {
			return -1
		}
		if i < p.next {
			return i
		}
		d.changed.Wait()
	}
	return -1
}

// unit gets one unit: from where it is kept, or else fetches it and keeps
// it.
func (f *fetcher) unit(i int) ([]byte, error) {
	release, err := f.p.claim(f.d.ctx, i)
	if err != nil {
		return nil, err
	}
	defer release()
	if data := f.p.load(i, &f.d.memory); data != nil {
		return data, nil
	}
	data, err := f.fetch(i)
	if err == nil {
		f.p.store(i, data)
	}
	return data, err
}

// fetch fetches one unit and checks it, as often as it takes.
func (f *fetcher) fetch(i int) ([]byte, error) {
	off, n := f.p.extent(i)
	stored := f.d.memory.get(n)
	got, counted := 0, 0
	f.since = time.Now()
	for {
		more, err := f.read(off+int64(got), stored[got:])
		got += more
		if got-counted >= step {
			f.since, counted = time.Now(), got
		}
		if err == nil {
			var data []byte
			if data, err = f.p.finish(i, stored, &f.d.memory); err == nil {
				return data, nil
			}
			got, counted = 0, 0
		}
		elsewhere := f.blame(err)
		f.hangUp()
		if elsewhere {
			continue
		}
		if err := f.again(err); err != nil {
			return nil, err
		}
	}
}

// read fills p with the blob's bytes from off on and says how many it got
// before something went wrong.
func (f *fetcher) read(off int64, p []byte) (got int, err error) {
	if f.body == nil {
		n := int64(len(p))
		if f.then < f.end {
			last, size := f.p.extent(f.end - 1)
			n = last + size - off
		}
		if err := f.connect(off, n); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	defer func() { f.d.moved(int64(got), time.Since(began)) }()
	for f.at < off { // what a stream has passed, or a blob's beginning
		skipped, err := io.CopyN(io.Discard, f.body, min(off-f.at, unitLeast))
		f.moved(int(skipped))
		if err != nil {
			return 0, early(err)
		}
	}
	for got < len(p) {
		n, err := f.body.Read(p[got:])
		got += n
		f.moved(n)
		if err != nil && got < len(p) {
			return got, early(err)
		}
	}
	return got, nil
}

func (f *fetcher) moved(n int) {
	f.at += int64(n)
	if n > 0 {
		f.failed = 0
	}
}

// connect asks for [off, off+n) of the blob, or for all of it where that
// is known to be what comes.
func (f *fetcher) connect(off, n int64) error {
	if f.stream {
		off, n = 0, f.p.StoredSize
	}
	ctx, cancel := context.WithCancelCause(f.d.ctx)
	began := time.Now()
	body, whole, err := f.d.open(ctx, cancel, f.p, off, n)
	if err != nil {
		cancel(nil)
		return err
	}
	f.d.asked(time.Since(began))
	f.body, f.at, f.cancel = body, off, func() { cancel(nil) }
	if whole {
		f.at = 0
	}
	if n < f.p.StoredSize && f.p.partial() {
		f.next, f.stream = f.d.answered(f.p, whole)
	}
	return nil
}

// open makes a request that ends when nothing comes for too long.
func (d *Payloads) open(ctx context.Context, cancel context.CancelCauseFunc, p *part, off, n int64) (*watched, bool, error) {
	stall := stallAfter
	if t := d.opts.ReadTimeout; t > 0 {
		stall = min(stall, t/3) // it is for more than one try
	}
	w := &watched{ctx: ctx, rate: d.rate, stall: stall, timer: time.AfterFunc(stall, func() { cancel(errStalled) })}
	open := d.src.OpenBlob
	if m, ok := d.src.(Mirrored); ok && p.cut && !p.sums {
		open = m.OpenTrusted
	}
	body, whole, err := open(ctx, p.Digest, p.StoredSize, off, n)
	if err != nil {
		w.timer.Stop()
		return nil, false, w.cause(err)
	}
	w.body = body
	return w, whole, nil
}

// blame tells a source with mirrors whose bytes were wrong, and says
// whether another is to be asked.
func (f *fetcher) blame(err error) (more bool) {
	var wrong *contentError
	m, ok := f.d.src.(Mirrored)
	return ok && f.body != nil && errors.As(err, &wrong) && m.Blame(f.p.Digest, f.body.body)
}

// hangUp gives the connection back.
func (f *fetcher) hangUp() {
	if f.body != nil {
		_ = f.body.Close() // what was read was checked
		f.cancel()
		f.body = nil
	}
}

// again waits before the next try, or says why there is none: bytes may
// be damaged on the way once.
func (f *fetcher) again(err error) error {
	var wrong *contentError
	if errors.As(err, &wrong) {
		if f.bad++; f.bad > 1 {
			return err
		}
		return nil
	}
	if f.d.ctx.Err() != nil || final(err) {
		return err
	}
	pause := min(backoffFirst<<min(f.failed, 10), backoffMost)
	f.failed++
	pause = pause/2 + rand.N(pause/2+1)
	if t := f.d.opts.ReadTimeout; t > 0 && time.Since(f.since)+pause > t {
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	select {
	case <-time.After(pause):
		return nil
	case <-f.d.ctx.Done():
		return f.d.ctx.Err()
	}
}

// final says that trying again cannot help.
func final(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && !t.Temporary()
}

// early makes the end of a body that came too soon an error.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
