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

// Options tell how to read. The zero value is usable.
type Options struct {
	Memory      int64         // bytes that may be fetched and not yet read; 0: 160 MiB; at least LeastMemory
	Concurrency int           // requests at a time; 0: 16
	ReadTimeout time.Duration // how long a unit, or a step of it, is tried; 0: for ever
	LimitRate   int64         // bytes per second; 0: no limit
	// Store has what need not be fetched of a file, and keeps what is
	// where it is a Keeper; nil where there is none. It may be nil.
	Store func(file int) Store

	tardy time.Duration // transport.Options.Tardy; tests have another
}

const (
	// LeastMemory is the smallest bound on memory that can be kept to.
	LeastMemory        = 8 << 20
	defaultMemory      = 160 << 20
	defaultConcurrency = 16
	// unitMost is a unit's usual size: on a link with 20 ms and 100 MB/s a
	// connection it takes three times the delay.
	unitMost  = 4 << 20
	unitLeast = 256 << 10
	// window is how many units the head's stream may be ahead of what was
	// read; the reserve holds them.
	window = 3
)

// ErrTimeout reports that too little came within the read timeout. It is a
// context.DeadlineExceeded too.
var ErrTimeout = transport.ErrTimeout

// ErrOrder says that a file was opened out of order.
var ErrOrder = errors.New("read out of order")

// Payloads are the payloads of some files, to be read in their order.
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
	changed *sync.Cond // a unit was begun, or all is over
	closed  bool
	parts   []*part
	head    int   // the part that is being read
	next    int   // the file that is to be opened next
	free    int64 // memory
	running int   // requests and streams
	asking  bool  // one request is finding out whether ranges are honoured
	packs   packs
}

// New returns the payloads of files. They are fetched from when the first
// is opened; Close ends it.
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
	d.changed = sync.NewCond(&d.mu)
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.link = transport.NewLink(src, transport.Options{Limit: transport.NewLimiter(opts.LimitRate), Timeout: opts.ReadTimeout, Tardy: opts.tardy})
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

// OpenPayload opens the payload of f, which must be the file after the
// one that was opened last; files that need not be fetched may be left
// out. It ends with io.EOF only when every byte was
// verified.
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

// Fetches says that some of f is fetched, or was: it must not be left out,
// even if all of it is there by now.
func (d *Payloads) Fetches(f *layout.File) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.files, f)
	return i >= 0 && !d.allLocalLocked(i)
}

// allLocalLocked says that nothing of a file is fetched.
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
	d.link.Close()
	return nil
}

// dispatch begins what can be begun now.
func (d *Payloads) dispatch() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dispatchLocked()
}

// dispatchLocked begins what can be begun now, in order.
func (d *Payloads) dispatchLocked() {
	for i := d.head; i < len(d.parts) && !d.closed; i++ {
		if !d.beginLocked(d.parts[i], i == d.head) {
			return
		}
	}
}

// beginLocked begins the next units of a part. It returns false when
// nothing behind them may begin before they have.
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
			// What is left of memory soon grows: a request is worth waiting
			// for, unless the reader waits for it.
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

// takeLocked begins n units of a part: they have their memory. fetched
// reports whether a fetcher is to bring them.
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

// ended takes back the place of a request or stream.
func (d *Payloads) ended(f *fetcher) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running--
	d.asking = d.asking && !f.asks
	d.dispatchLocked()
}

// answered notes how the registry took a request for a range of p. Where
// all of the blob came, and no other stream fills p, the answer is to go
// on as one: stream is true, and next is the first unit that nobody fetches.
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
