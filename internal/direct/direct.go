package direct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Options configure Payloads. The zero value is usable.
type Options struct {
	Memory      int64         // bytes that may be fetched and not yet read; 0 for 160 MiB; at least LeastMemory
	Concurrency int           // concurrent requests; 0 for 16
	ReadTimeout time.Duration // how long a unit, or a step of it, is tried; 0 for ever
	LimitRate   int64         // bytes per second; 0 for no limit
	Tardy       time.Duration // transport.Options.Tardy
	// Store returns the local copy of a file, by index, or nil. If it also
	// implements Cache, fetched bytes are written to it. May be nil.
	Store func(file int) Store

	held int64 // bytes of whole packs in memory; 0 for mostHeld
}

const (
	// LeastMemory is the smallest possible bound on memory, in bytes.
	LeastMemory        = 8 << 20
	defaultMemory      = 160 << 20
	defaultConcurrency = 16
	// unitMost is the usual size of a unit, in bytes: with a delay of 20 ms
	// and 100 MB/s for a connection, its transfer takes twice the delay.
	unitMost  = 4 << 20
	unitLeast = 256 << 10
	// window bounds how many units the head's stream may be ahead of the
	// reader; the reserve holds them.
	window = 3
)

// ErrTimeout is the error when too few bytes arrive within the read timeout.
// It is also a context.DeadlineExceeded.
var ErrTimeout = transport.ErrTimeout

// ErrOrder is the error when a file is opened out of order.
var ErrOrder = errors.New("read out of order")

// Payloads are the payloads of several files, to be read in their order.
type Payloads struct {
	link    *transport.Link
	opts    Options
	files   []*layout.File
	first   []int // index of each file's first part in parts; one more at the end
	ctx     context.Context
	stop    context.CancelFunc
	work    sync.WaitGroup
	reserve int64 // of memory, for the head
	memory  memory

	mu      sync.Mutex
	changed *sync.Cond // signals that a unit was begun, or that Payloads is closed
	closed  bool
	parts   []*part
	head    int   // index of the part that is being read
	next    int   // index of the file to be opened next
	free    int64 // free memory, in bytes
	running int   // running requests and streams
	asking  bool  // one request is finding out whether ranges are honoured
	packs   packs
}

// New returns the payloads of files. Fetching begins when the first file is
// opened, and ends with Close.
func New(src transport.Source, files []*layout.File, opts Options) *Payloads {
	if opts.Memory <= 0 {
		opts.Memory = defaultMemory
	}
	if opts.Concurrency <= 0 {
		opts.Concurrency = defaultConcurrency
	}
	opts.Memory = max(opts.Memory, LeastMemory)
	d := &Payloads{opts: opts, files: files, free: opts.Memory, first: []int{0}}
	d.memory.most = opts.Memory
	if d.packs.most = opts.held; d.packs.most == 0 {
		d.packs.most = mostHeld
	}
	d.changed = sync.NewCond(&d.mu)
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.link = transport.NewLink(src, transport.Options{Limit: transport.NewLimiter(opts.LimitRate), Timeout: opts.ReadTimeout, Tardy: opts.Tardy})
	for i, f := range files {
		var store Store
		if opts.Store != nil {
			store = opts.Store(i)
		}
		for j := range f.Parts {
			p := d.plan(f, store, j)
			d.parts = append(d.parts, p)
			if p.instead != nil {
				p = p.instead
			}
			if p.count > 0 {
				d.reserve = max(d.reserve, min(window, int64(p.count))*p.weight(0))
			}
		}
		d.first = append(d.first, len(d.parts))
	}
	return d
}

// OpenPayload opens the payload of f. Files must be opened in order; only
// files that need not be fetched may be skipped. The reader returns io.EOF
// only after every byte was verified.
func (d *Payloads) OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.next < len(d.files) && d.files[d.next] != f && d.allLocalLocked(d.next) {
		d.next++
	}
	if d.next == len(d.files) || d.files[d.next] != f {
		return nil, fmt.Errorf("%q: %w", f.Name, ErrOrder)
	}
	r := &reader{d: d, ctx: ctx, part: d.first[d.next], end: d.first[d.next+1]}
	d.head = r.part
	d.next++
	d.dispatchLocked()
	return r, nil
}

// Fetches reports whether a part of f is or was fetched. Then f must not be
// skipped, even if all of it is local by now.
func (d *Payloads) Fetches(f *layout.File) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.files, f)
	return i >= 0 && !d.allLocalLocked(i)
}

// allLocalLocked reports whether no part of a file is fetched.
func (d *Payloads) allLocalLocked(file int) bool {
	for _, p := range d.parts[d.first[file]:d.first[file+1]] {
		if p.count > 0 {
			return false
		}
	}
	return true
}

// Close ends all requests and waits for them.
func (d *Payloads) Close() error {
	d.stop()
	d.mu.Lock()
	d.closed = true
	d.changed.Broadcast()
	d.mu.Unlock()
	d.work.Wait()
	d.packs.streams.close()
	d.link.Close()
	return nil
}

// dispatch starts what can be started now.
func (d *Payloads) dispatch() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dispatchLocked()
}

// dispatchLocked starts what can be started now, in order.
func (d *Payloads) dispatchLocked() {
	for i := d.head; i < len(d.parts) && !d.closed; i++ {
		if !d.beginLocked(d.parts[i], i == d.head) {
			return
		}
	}
}

// beginLocked starts the next units of a part. It returns false if nothing
// after them may start first.
func (d *Payloads) beginLocked(p *part, head bool) bool {
	known, served := d.link.Ranges()
	pace := pace{d.link.Best()}
	for p.next < p.count {
		streamed := p.streamed || p.partial() && known && !served
		if head && streamed && p.next-p.read >= window {
			return true
		}
		need, free := p.weight(p.next), d.free
		if !head {
			free -= d.reserve
		}
		if need > free {
			return false
		}
		if p.streamed {
			d.takeLocked(p, 1, false)
			d.changed.Broadcast()
			continue
		}
		here := p.here(p.next)
		partial := p.partial() && !here
		if d.running >= pace.connections(p, d.opts.Concurrency) || partial && d.asking {
			return false
		}
		n := 1
		if partial && served {
			want := p.missing(pace.units(p, d.opts.Memory))
			n = int(min(int64(want), free/need))
			// More memory is free soon: a full-sized request is worth
			// waiting for, unless the reader waits for it.
			if n < want && (!head || p.next > p.read+1) {
				return false
			}
		}
		asks := partial && !known
		d.asking = d.asking || asks
		d.running++
		i := p.next
		d.takeLocked(p, n, true)
		p.streamed = streamed
		f := &fetcher{d: d, p: p, stream: streamed, asks: asks, then: i + 1, end: i + n}
		d.work.Go(func() { f.run(i) })
	}
	return true
}

// takeLocked reserves the memory of the next n units of a part. fetched
// reports whether a fetcher is to fetch them.
func (d *Payloads) takeLocked(p *part, n int, fetched bool) {
	if p.ctx == nil {
		p.ctx, p.stop = context.WithCancel(d.ctx)
	}
	for range n {
		need := p.weight(p.next)
		d.free -= need
		u := p.unitLocked(p.next)
		u.weight, u.fetched = need, fetched
		p.next++
	}
}

// ended releases the slot of a request or stream.
func (d *Payloads) ended(f *fetcher) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	d.asking = d.asking && !f.asks
	d.dispatchLocked()
}

// answered records how the registry answered a ranged request for p. If it
// sent the whole blob, and no other stream fills p, stream is true: the
// answer is used as a stream, and next is the first unit that no fetcher
// has.
func (d *Payloads) answered(p *part, whole bool) (next int, stream bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asking = false
	if whole {
		stream = !p.streamed
		p.streamed = true
	}
	next = p.next
	d.dispatchLocked()
	return next, stream
}
