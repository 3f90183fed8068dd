package mounting

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/workingset"
)

const (
	// replayMost bounds the bytes that a replay fetches by itself.
	replayMost = 1 << 30
	// replayShare is the part of the payload that bounds it as well: one in
	// so many.
	replayShare = 4
	// replayStorers is how many goroutines hand pages to the kernel.
	replayStorers = 4
)

// Replay is a working set on its way: into the cache, and into the kernel.
type Replay struct {
	m      *fs.Mounted
	ctx    context.Context // ends with the replay, or when it is given up
	cancel context.CancelFunc
	files  map[string]*replayFile
	order  []*replayFile // files in the artifact's order
	stages int
	done   chan struct{}

	recorded, local, fetched, stored, used, late atomic.Int64
	noRoom                                       atomic.Bool // the kernel takes no more pages

	mu       sync.Mutex
	pending  []replayed     // to be handed to the kernel, the next one first
	more     *sync.Cond     // pending, or complete
	ended    bool           // all of the set has come, or cannot
	complete bool           // nothing more will be pending
	closed   bool           // nothing is handed over any more
	handing  sync.WaitGroup // known; begun only while not closed
	others   sync.WaitGroup // windows outside of the set; begun only while not ended
	ready    time.Duration  // when all was local; 0: it is not yet
}

// replayFile is one file of a replay.
type replayFile struct {
	name string
	open *cache.File
	size int64

	stages [][]cache.Extent
	wants  []cache.Extent // of all stages, ascending
	parked []replayed     // present, for when the kernel knows the file

	windows map[int64]bool // by offset, outside of the set and fetched
}

// replayed is bytes of a file that are present.
type replayed struct {
	file     *replayFile
	x        cache.Extent
	recorded bool // it is data that the set names
}

// Replay fetches what a working set names of the artifact's files, stage by
// stage, and hands the pages to the kernel as they come. It returns at once.
// Files that the artifact does not have are ignored, and so is what lies
// beyond a file's end. limit bounds the bytes of pages; 0 stands for
// the smaller of 1 GiB and a quarter of the payload. The replay ends with ctx
// or the mount.
func (o *Opened) Replay(ctx context.Context, set *workingset.Set, m *fs.Mounted, limit int64) *Replay {
	r := &Replay{m: m, files: map[string]*replayFile{}, done: make(chan struct{})}
	r.more = sync.NewCond(&r.mu)
	if limit <= 0 {
		limit = min(replayMost, o.payload()/replayShare)
	}
	r.prepare(o, set, limit)
	r.ctx, r.cancel = context.WithCancel(ctx)
	o.replay.Store(r)
	m.OnKnown(r.known)
	fs.TryDeclining()
	go func() {
		defer r.cancel()
		select {
		case <-m.Done():
		case <-r.done:
		}
	}()
	go r.run()
	return r
}

// payload is how much data the artifact's files have.
func (o *Opened) payload() (n int64) {
	for _, f := range o.Artifact.Files {
		n += f.PayloadSize()
	}
	return n
}

// prepare looks up what a set wants, up to limit bytes of data, stage by
// stage.
func (r *Replay) prepare(o *Opened, set *workingset.Set, limit int64) {
	r.stages = set.Stages()
	for _, f := range o.Artifact.Files {
		wanted := set.For(f.Name, f.Key(), f.Size())
		if wanted == nil {
			continue
		}
		open, err := o.File(f)
		if err != nil {
			continue // the mount could not have begun without it
		}
		file := &replayFile{name: f.Name, open: open, size: f.Size(), stages: make([][]cache.Extent, r.stages)}
		for _, e := range wanted.Extents {
			x := cache.Extent{Off: e.Page * workingset.PageSize, N: e.Pages * workingset.PageSize}
			file.stages[e.Stage] = append(file.stages[e.Stage], x)
		}
		r.files[f.Name] = file
		r.order = append(r.order, file)
	}
	defer func() {
		for _, f := range r.order {
			slices.SortFunc(f.wants, func(a, b cache.Extent) int { return cmp.Compare(a.Off, b.Off) })
		}
	}()
	for i := range r.stages {
		for _, f := range r.order {
			for k, x := range f.stages[i] {
				if limit -= x.N; limit < 0 { // holes take memory too
					f.stages[i] = f.stages[i][:k]
					break
				}
				r.recorded.Add(f.open.Data(x.Off, x.N))
				f.wants = append(f.wants, x)
			}
		}
	}
}

func (r *Replay) run() {
	began := time.Now()
	var storing sync.WaitGroup
	for range replayStorers {
		storing.Go(r.store)
	}
	var coming []*cache.Replay
	for _, f := range r.order {
		coming = append(coming, f.open.Replay(r.ctx, f.stages, func(x cache.Extent, fetched bool) {
			r.local.Add(x.N)
			if fetched {
				r.fetched.Add(x.N)
			}
			r.push(replayed{f, x, true})
		}))
	}
	for i := range r.stages {
		for _, f := range r.order {
			r.holes(f, f.stages[i])
		}
		for _, c := range coming {
			c.Next()
		}
	}
	for _, c := range coming {
		<-c.Done()
	}
	r.mu.Lock()
	r.ended = true
	if r.ctx.Err() == nil {
		r.ready = time.Since(began)
	}
	r.mu.Unlock()
	r.others.Wait()
	r.mu.Lock()
	r.complete = true
	r.more.Broadcast()
	r.mu.Unlock()
	storing.Wait()
	close(r.done) // nothing is declined any more
	for _, f := range r.order {
		r.m.Repair(f.name)
	}
}

// holes has the pages of extents that hold no data handed to the kernel. They
// cost the network nothing, but each that the kernel does not have makes it read
// a window around it.
func (r *Replay) holes(f *replayFile, extents []cache.Extent) {
	const page = workingset.PageSize
	for _, x := range extents {
		if f.open.Data(x.Off, x.N) == x.N {
			continue
		}
		for off := x.Off; off < x.Off+x.N; off += page {
			if f.open.Data(off, page) == 0 {
				r.push(replayed{f, cache.Extent{Off: off, N: page}, false})
			}
		}
	}
}

// push has bytes handed to the kernel.
func (r *Replay) push(p replayed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// What follows the bytes before goes with them.
	if n := len(r.pending); n > 0 && r.pending[n-1].file == p.file && r.pending[n-1].recorded == p.recorded && r.pending[n-1].x.Off+r.pending[n-1].x.N == p.x.Off {
		r.pending[n-1].x.N += p.x.N
		return
	}
	r.pending = append(r.pending, p)
	r.more.Signal()
}

// store hands bytes to the kernel until the replay has ended.
func (r *Replay) store() {
	for {
		r.mu.Lock()
		for len(r.pending) == 0 && !r.complete {
			r.more.Wait()
		}
		if len(r.pending) == 0 {
			r.mu.Unlock()
			return
		}
		p := r.pending[0]
		r.pending = r.pending[1:]
		r.mu.Unlock()
		r.hand(p)
	}
}

// hand hands the pages of bytes that are present to the kernel.
func (r *Replay) hand(p replayed) {
	f := p.file
	const page = workingset.PageSize
	off := p.x.Off &^ (page - 1)
	end := min((p.x.Off+p.x.N+page-1)&^(page-1), f.size)
	n, err := r.m.Store(f.name, off, end-off, f.open.ReadPresent)
	if p.recorded {
		r.stored.Add(n)
	}
	switch {
	case errors.Is(err, fs.ErrUnknown):
		r.mu.Lock()
		f.parked = append(f.parked, replayed{f, cache.Extent{Off: off + n, N: end - off - n}, p.recorded})
		r.mu.Unlock()
	case errors.Is(err, fs.ErrNoRoom):
		r.noRoom.Store(true)
	}
}

// known hands over what has waited for the kernel to know a file.
func (r *Replay) known(name string) {
	f := r.files[name]
	if f == nil {
		return
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	r.handing.Add(1)
	defer r.handing.Done()
	parked := f.parked
	f.parked = nil
	r.mu.Unlock()
	for _, p := range parked {
		r.hand(p)
	}
}

// Wait blocks until all of the set is local, or cannot be, and was offered
// to the kernel.
func (r *Replay) Wait() { <-r.done }

// close ends the replay and waits for it.
func (r *Replay) close() {
	r.cancel()
	<-r.done
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.handing.Wait()
}

// Done returns a channel that is closed when Wait would return.
func (r *Replay) Done() <-chan struct{} { return r.done }

// ReplayStats are a replay's counters, in bytes of data.
type ReplayStats struct {
	Recorded int64         // that the set names of the artifact's files, up to the limit
	Local    int64         // of these, what can be read without the network
	Fetched  int64         // of these, what came from the registry
	Stored   int64         // handed to the kernel, in pages; reads of them are not seen
	Used     int64         // asked for by readers when it was there
	Late     int64         // asked for by readers before it was there
	Unused   int64         // Local, and neither asked for nor handed to the kernel
	Ready    time.Duration // from the beginning until all that can be had was local; 0: not yet
	NoRoom   bool          // the memory cgroup was too full for more pages
}

// Stats returns what the replay has done so far.
func (r *Replay) Stats() ReplayStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := ReplayStats{
		Recorded: r.recorded.Load(), Local: r.local.Load(), Fetched: r.fetched.Load(), Stored: r.stored.Load(),
		Used: r.used.Load(), Late: r.late.Load(), Ready: r.ready, NoRoom: r.noRoom.Load(),
	}
	s.Unused = max(0, s.Local-s.Stored-s.Used-s.Late)
	return s
}

// askedFor notes a READ of a page. Of a larger READ it is not known what its
// reader wants. If the page was declined as one of a window, and is not in the
// set, the window was not read for the set: then it is fetched after all.
func (r *Replay) askedFor(name string, off, n int64, again bool) {
	f := r.files[name]
	switch {
	case f == nil || n > workingset.PageSize:
	case !f.has(off):
		if again {
			r.outside(f, off&^(window-1))
		}
	case f.open.Present(off, n):
		r.used.Add(n)
	default:
		r.late.Add(n)
	}
}

// window is what the kernel reads around a fault, in bytes.
const window = 2 << 20

// outside has a window fetched that was declined, and its pages handed to the
// kernel.
func (r *Replay) outside(f *replayFile, off int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || f.windows[off] {
		return
	}
	if f.windows == nil {
		f.windows = map[int64]bool{}
	}
	f.windows[off] = true
	r.others.Add(1)
	go func() { // the page that was asked for goes first
		defer r.others.Done()
		f.open.FetchAhead(off, window)
		w := f.open.Replay(r.ctx, [][]cache.Extent{{{Off: off, N: window}}}, func(x cache.Extent, _ bool) { r.push(replayed{f, x, false}) })
		w.Next()
		<-w.Done()
	}()
}

// has reports whether the set has the page at off.
func (f *replayFile) has(off int64) bool {
	i, found := slices.BinarySearchFunc(f.wants, off, func(x cache.Extent, off int64) int { return cmp.Compare(x.Off, off) })
	return found || i > 0 && off < f.wants[i-1].Off+f.wants[i-1].N
}

// asked notes a READ.
func (o *Opened) asked(name string, off, n int64, again bool) {
	if r := o.replay.Load(); r != nil {
		r.askedFor(name, off, n, again)
	}
}

// decline reports whether a speculative READ is to be declined, whose bytes
// are missing: while a replay is under way, which brings those that are wanted.
func (o *Opened) decline(name string, off, n int64) bool {
	r := o.replay.Load()
	if r == nil {
		return false
	}
	f := r.files[name]
	if f == nil || f.open.Present(off, n) {
		return false
	}
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}
