package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Directories below the cache's own, all 0700, files in them 0600.
const (
	dirFiles = "files" // KEY.data, KEY.state, KEY.meta
	dirBlobs = "blobs" // manifests and config blobs, by digest
	dirRefs  = "refs"  // what a reference was last seen as
)

const (
	// defaultConcurrency is the number of requests in flight, for the
	// process. Eight plain connections carried five times what one did;
	// links with a long delay want more.
	defaultConcurrency = 16
	// bufferBudget bounds the bytes that fetches hold in memory, for the
	// process, unless it is told another.
	bufferBudget = 64 << 20
	// defaultPatience is how long a fetch that another process has claimed
	// may stand still before it is done here.
	defaultPatience = 3 * time.Second
	// defaultDonorIdle is how long a file that another copies from stays open,
	// and so cannot be evicted, after the last copy. Opening it again costs
	// less than a millisecond.
	defaultDonorIdle = 5 * time.Second
	// defaultGrace is how long a fetch is held up by what is read from the
	// disk for all: how much room there is, which file holds what. It is
	// less than most requests take, and more than most disks do.
	defaultGrace = 50 * time.Millisecond
)

// Options tell how to open a cache. The zero value is usable.
type Options struct {
	Concurrency int           // requests in flight for all files; 0: 16
	ReadTimeout time.Duration // how long a read waits for missing bytes; 0: for ever
	Size        int64         // bytes on disk; 0: as much as leaves a tenth of its file system free
	LimitRate   int64         // bytes fetched per second, for the process; 0: no limit
	Memory      int64         // bytes that fetches hold in memory; 0: 64 MiB
	Log         *slog.Logger  // nil: nothing is logged

	// Tests have others.
	patience  time.Duration
	grace     time.Duration
	donorIdle time.Duration
	watch     time.Duration // between looks at what other processes have changed
	tardy     time.Duration // transport.Options.Tardy
	readDisk  func(f *os.File, p []byte, off int64) (int, error)
	before    func(work string) // called before work that reads the disk at length, and between the steps of a write
}

// Cache is a directory of cached files. Several processes may have it open.
type Cache struct {
	opts    Options
	root    *os.Root
	log     *slog.Logger
	ctx     context.Context // ends at Close
	stop    context.CancelFunc
	queue   *queue
	buffers *semaphore.Weighted
	windows *semaphore.Weighted // of frames that are decoded as streams, beside the buffers
	rate    *rate.Limiter       // nil without a limit
	work    sync.WaitGroup      // all goroutines but the queue's jobs
	checks  chan *entry         // files that may have become complete
	noticed chan struct{}       // another process may have taken pieces back
	index   index
	room    room

	measured measured // what Space tells of
	spare    spare
	said     said
	counts   counts

	late *semaphore.Weighted // bytes of pieces that are still to be kept

	onlyRead bool // a Reader's: nothing in the directory is changed

	mu       sync.Mutex // never held over I/O: fetches take it
	closed   bool
	opening  map[string]chan struct{} // files that are being opened, by key
	entries  map[string]*entry        // open files by key
	links    map[Source]*transport.Link
	fetching map[string]chan struct{} // whole parts on their way, by digest
}

// Open opens the cache in dir and makes it where there is none. A
// directory that other users can write is refused.
func Open(dir string, opts Options) (*Cache, error) {
	opts = opts.withDefaults()
	root, err := openRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c := &Cache{
		opts:     opts,
		root:     root,
		log:      opts.Log,
		buffers:  semaphore.NewWeighted(opts.Memory),
		windows:  semaphore.NewWeighted(zstdframe.MaxWindow),
		checks:   make(chan *entry, 1024),
		noticed:  make(chan struct{}, 1),
		late:     semaphore.NewWeighted(lateMost),
		opening:  map[string]chan struct{}{},
		entries:  map[string]*entry{},
		links:    map[Source]*transport.Link{},
		fetching: map[string]chan struct{}{},
	}
	c.sweep()
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.rate = transport.NewLimiter(opts.LimitRate)
	c.queue = newQueue(opts.Concurrency, c.run, c.measuring)
	c.work.Go(c.verifyLoop)
	c.work.Go(c.watchLoop)
	return c, nil
}

// withDefaults returns opts with what was left out.
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
	if opts.donorIdle <= 0 {
		opts.donorIdle = defaultDonorIdle
	}
	if opts.watch <= 0 {
		opts.watch = watchPause
	}
	if opts.before == nil {
		opts.before = func(string) {}
	}
	if opts.readDisk == nil {
		opts.readDisk = (*os.File).ReadAt
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return opts
}

// checkRoot fails if dir is no directory that other users cannot write.
func checkRoot(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return &fs.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others can write to it (mode %04o): chmod 0700 it, or use another: %w", info.Mode().Perm(), fs.ErrPermission)
	}
	return nil
}

func openRoot(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := checkRoot(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{dirFiles, dirBlobs, dirRefs} {
		// Where one cannot be made nothing is found, and nothing kept.
		if err := root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) && !readOnly(err) {
			_ = root.Close()
			return nil, err
		}
	}
	return root, nil
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
	c.index.end()
	c.room.end()
	return c.root.Close()
}

// File opens the cached form of f, and makes it where there is none. What
// is missing comes from src. Files with the same content share one form.
func (c *Cache) File(f *layout.File, src Source) (*File, error) {
	key := keyOf(f, newGrid(f), src)
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
		if e, err = c.openEntry(key, f, c.linkTo(src)); err != nil {
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

// use is one more use of a file that is open. One that is not is opened by
// the caller, or by somebody else just now; opened is closed after that.
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

// linkTo is what was learned about a source.
func (c *Cache) linkTo(src Source) *transport.Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.links[src]
	if l == nil {
		l = transport.NewLink(src, transport.Options{Limit: c.rate, Tardy: c.opts.tardy})
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
		delete(c.entries, e.key)
	}
	c.mu.Unlock()
	if last {
		e.close()
	}
}

// openFlags never follow a symbolic link that somebody put in the cache.
const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC
