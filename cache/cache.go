package cache

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

const (
	// defaultConcurrency is the number of requests in flight, for the
	// process. Eight plain connections carried five times what one did;
	// links with a long delay want more.
	defaultConcurrency = 16
	// bufferBudget bounds the bytes that fetches hold in memory, for the
	// process, unless Options.Memory is set.
	bufferBudget = 64 << 20
	// defaultPatience is how long a fetch that another process has claimed
	// may stand still before this process fetches the same.
	defaultPatience = 3 * time.Second
	// defaultPeerIdle is how long a file that another copies from stays open,
	// and so cannot be evicted, after the last copy. Opening it again costs
	// less than a millisecond.
	defaultPeerIdle = 5 * time.Second
	// watchPause is between two looks at the counters of files that nobody
	// reads.
	watchPause = time.Second
	// defaultGrace bounds how long a fetch waits for what is read from the disk
	// for all fetches: how much room there is, which file holds what. It is
	// less than most requests take, and more than most disks do.
	defaultGrace = 50 * time.Millisecond
)

// Options configure a cache. The zero value is usable.
type Options struct {
	Concurrency int           // requests in flight for all files; 0: 16
	ReadTimeout time.Duration // how long a read waits for missing bytes; 0: for ever
	Size        int64         // bytes on disk; 0: as much as leaves a tenth of its file system free
	LimitRate   int64         // bytes fetched per second, for the process; 0: no limit
	Memory      int64         // bytes that fetches hold in memory; 0: 64 MiB
	Log         *slog.Logger  // nil: nothing is logged
	Tardy       time.Duration // transport.Options.Tardy

	// Tests have others.
	patience time.Duration
	grace    time.Duration
	passed   time.Duration // how long pages of what was taken stay
	peerIdle time.Duration
	watch    time.Duration // between looks at what other processes have changed
	readDisk func(f *os.File, p []byte, off int64) (int, error)
	before   func(work string) // called before work that reads the disk at length, and between the steps of a write
}

// Cache is a directory of cached files. Several processes may have it open.
type Cache struct {
	opts Options
	log  *slog.Logger
	ctx  context.Context // ends at Close
	stop context.CancelFunc
	work sync.WaitGroup // all goroutines but the queue's jobs

	// On disk.
	dir     *disk.Dir
	quota   *quota.Quota // nil in a Reader's: nothing in the directory is changed
	index   index
	checks  chan *entry   // files that may have become complete
	noticed chan struct{} // another process may have taken pieces back

	// In memory.
	memory  *overlay.Memory     // pieces that are not on disk
	buffers *semaphore.Weighted // bytes that fetches hold
	pace    pace
	windows windows

	// From elsewhere.
	queue    *queue
	rate     *rate.Limiter // nil without a limit
	fetching once

	measured measured // what Space returns
	report   report
	counts   counts

	mu      sync.Mutex // never held over I/O: fetches take it
	closed  bool
	opening map[string]chan struct{} // files that are being opened, by key
	entries map[string]*entry        // open files by key
	links   map[Source]*transport.Link
}

// Open opens the cache in dir and makes it if there is none. A directory that
// other users can write is refused.
func Open(dir string, opts Options) (*Cache, error) {
	c := newCache(opts)
	d, err := disk.Open(dir, c.hooks())
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c.setDir(d)
	c.quota = quota.New(quota.Options{
		Dir: d, Size: c.opts.Size, Grace: c.opts.grace, Evict: c.evict,
		Before: func() { c.opts.before("measure") },
		After:  func() { c.queue.dispatch() }, // what was held while it took long
	})
	c.queue = &queue{
		limit: c.opts.Concurrency,
		carve: func(s span, p priority, idle int) (*job, span) { return s.entry.flights.carve(s, p, idle) },
		run:   (*job).run,
		hold:  c.quota.Measuring,
	}
	d.Sweep()
	c.work.Go(c.checkLoop)
	c.work.Go(c.watchLoop)
	return c, nil
}

// newCache returns a cache without a directory.
func newCache(opts Options) *Cache {
	opts = opts.withDefaults()
	c := &Cache{
		opts:    opts,
		log:     opts.Log,
		memory:  overlay.New(),
		buffers: semaphore.NewWeighted(opts.Memory),
		windows: newWindows(),
		rate:    transport.NewLimiter(opts.LimitRate),
		checks:  make(chan *entry, 1024),
		noticed: make(chan struct{}, 1),
		opening: map[string]chan struct{}{},
		entries: map[string]*entry{},
		links:   map[Source]*transport.Link{},
	}
	c.pace.jobs = func() int { return c.queue.count() }
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// hooks returns what the directory calls.
func (c *Cache) hooks() disk.Hooks {
	return disk.Hooks{Log: c.log, Wrong: c.counts.foundWrong, Shown: c.shown, Read: c.opts.readDisk, Before: c.opts.before}
}

func (c *Cache) setDir(d *disk.Dir) {
	c.dir = d
	c.index.ctx, c.index.dir, c.index.before = c.ctx, d, c.opts.before
	c.report.log, c.report.dir = c.log, d.Name()
}

// withDefaults returns opts with the defaults of fields that are 0.
func (opts Options) withDefaults() Options {
	if opts.Concurrency <= 0 {
		opts.Concurrency = defaultConcurrency
	}
	if opts.Memory <= 0 {
		opts.Memory = bufferBudget
	}
	if opts.patience <= 0 {
		opts.patience = defaultPatience
	}
	if opts.grace <= 0 {
		opts.grace = defaultGrace
	}
	if opts.peerIdle <= 0 {
		opts.peerIdle = defaultPeerIdle
	}
	if opts.passed <= 0 {
		opts.passed = defaultPassed
	}
	if opts.watch <= 0 {
		opts.watch = watchPause
	}
	if opts.before == nil {
		opts.before = func(string) {}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return opts
}

// Close ends all fetches and waits for them. Files still open fail their
// reads from now on unless their bytes are present; close them first.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true // nobody begins to open another file
	opening := slices.Collect(maps.Values(c.opening))
	c.mu.Unlock()
	for _, done := range opening {
		<-done
	}
	c.mu.Lock()
	for _, e := range c.entries {
		e.shut()
	}
	c.mu.Unlock()
	c.stop()
	c.queue.close()
	c.work.Wait()
	for _, l := range c.allLinks() {
		l.Close()
	}
	c.index.close()
	c.quota.Close()
	return c.dir.Close()
}

// File opens the cached form of f, and makes it if there is none. Missing bytes
// are fetched from src. Files with the same content share one form.
func (c *Cache) File(f *layout.File, src Source) (*File, error) {
	g := disk.NewGrid(f)
	key := keyOf(f, g, src)
	for {
		e, opens, opened, err := c.use(key)
		switch {
		case err != nil:
			return nil, err
		case e != nil:
			return &File{entry: e, name: f.Name}, nil
		case !opens:
			<-opened
			continue
		}
		if e, err = c.openEntry(key, f, g, c.linkTo(src)); err != nil {
			err = fmt.Errorf("cache: file %q: %w", f.Name, err)
		}
		c.mu.Lock()
		if err == nil {
			e.users++
			c.entries[key] = e
		}
		delete(c.opening, key)
		close(opened)
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		return &File{entry: e, name: f.Name}, nil
	}
}

// use returns the entry of a file that is open, with one more use. One that is
// not is opened by the caller, or by somebody else just now; opened is closed
// after that.
func (c *Cache) use(key string) (e *entry, opens bool, opened chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, nil, fs.ErrClosed
	}
	if e := c.entries[key]; e != nil {
		e.users++
		return e, false, nil, nil
	}
	opened = c.opening[key]
	if opens = opened == nil; opens {
		opened = make(chan struct{})
		c.opening[key] = opened
	}
	return nil, opens, opened, nil
}

// linkTo returns the link to a source.
func (c *Cache) linkTo(src Source) *transport.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.links[src]
	if l == nil {
		l = transport.NewLink(src, transport.Options{Limit: c.rate, Tardy: c.opts.Tardy})
		c.links[src] = l
	}
	return l
}

func (c *Cache) allLinks() []*transport.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.links))
}

// release gives back one use of e; the last one closes it.
func (c *Cache) release(e *entry) {
	c.mu.Lock()
	e.users--
	last := e.users == 0
	if last {
		delete(c.entries, e.disk.Key)
	}
	c.mu.Unlock()
	if last {
		e.close()
	}
}

// watchLoop compares now and then what others have changed of open files, and
// at once when a reader has noticed something.
func (c *Cache) watchLoop() {
	t := time.NewTicker(c.opts.watch)
	defer t.Stop()
	for {
		all := false
		select {
		case <-t.C:
			all = true
		case <-c.noticed:
		case <-c.ctx.Done():
			return
		}
		for _, e := range c.openEntries() {
			e.disk.Compare(all)
			e.flights.unuse()
		}
	}
}

// openEntries returns the open files. The caller ends its use of each.
func (c *Cache) openEntries() (all []*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.flights.use() {
			all = append(all, e)
		}
	}
	return all
}

// notice has the open files compared soon.
func (c *Cache) notice() {
	select {
	case c.noticed <- struct{}{}:
	default: // somebody has said so already
	}
}
