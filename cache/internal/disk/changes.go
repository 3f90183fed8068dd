package disk

import (
	"slices"
	"sync"
	"sync/atomic"
)

// A process that shows a file leaves copies of what it has read: the kernel's
// pages. They must go when a piece is taken back, by this process or by another.
// Each process compares the turns in the words with those that it has seen: at
// once if it took the piece back itself, else when a counter in the state's
// header has moved. It reads the one that moves first with each read, and also the one
// that moves last every second: while pieces are being taken back, a comparison does
// not see each of them.

// watchUnended is the number of comparisons of the counters after which the
// turns are compared although no counter has moved, if a process seems to be
// taking pieces back: it may have died over it.
const watchUnended = 16

// changes are the pieces of a file that were taken back, and the calls of OnDrop.
type changes struct {
	begun atomic.Uint64 // the state's counter when it was last compared, with what this process added

	mu    sync.Mutex
	calls []func(off, n int64)
	seen  map[int]Word // turns of pieces, if they are not 0
	ended uint64       // the state's counter when it was last compared, with what this process added
	wrong uint64       // the state's counter, with what this process added
	early []Stretch    // the first that had turned when it was not counted yet
	idle  int          // how often the counters were compared since the turns were
	todo  []Stretch    // still to be reported
	tells bool         // a goroutine reports
}

// sawLocked notes the word that this process has given to a piece.
func (c *changes) sawLocked(i int, word Word) {
	if turn := word & WordTurn; turn != 0 {
		if c.seen == nil {
			c.seen = map[int]Word{}
		}
		c.seen[i] = turn
	} else {
		delete(c.seen, i)
	}
}

// todoLocked queues a stretch to be reported.
func (c *changes) todoLocked(s Stretch) {
	if len(c.calls) == 0 {
		return
	}
	c.todo = Join(c.todo, s)
	if !c.tells {
		c.tells = true
		go c.tell()
	}
}

// tell reports what is queued. It holds no lock while it calls, and nobody waits
// for it.
func (c *changes) tell() {
	for {
		c.mu.Lock()
		todo, calls := c.todo, slices.Clone(c.calls)
		c.todo = nil
		if len(todo) == 0 {
			c.tells = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for _, s := range todo {
			for _, call := range calls {
				call(s.Off, s.N)
			}
		}
	}
}

// OnDrop registers call, which is called with bytes [off, off+n) of the file, or
// with n 0 for all of it, that may have been read and are no longer what the
// file holds: copies of them must be dropped. Pieces that were taken back before
// are reported as well, for copies that another process has left. call may
// block.
func (f *File) OnDrop(call func(off, n int64)) {
	c := &f.changes
	c.mu.Lock()
	c.calls = append(c.calls, call)
	c.seen = nil
	c.begun.Store(0)
	c.mu.Unlock()
	f.Compare(true)
}

// Quiet ends the calls of OnDrop: the file is being closed.
func (f *File) Quiet() {
	c := &f.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, c.todo = nil, nil
}

// Changed reports whether pieces may have been taken back since the last
// Compare.
func (f *File) Changed() bool {
	return atomic.LoadUint64(f.State.counter(offBegun)) != f.changes.begun.Load()
}

// Compare finds pieces that other processes have taken back, and reports them to
// the calls of OnDrop. With all, it also finds, in the end, what a process that
// died has left unreported.
func (f *File) Compare(all bool) {
	news, wrong := f.changes.compare(f, all)
	if wrong == 0 {
		return
	}
	f.dir.hooks.Wrong(ByElsewhere, wrong)
	line := []any{"file", f.Layout.Name, "pieces", wrong, "found_by", ByElsewhere, "source", f.source()}
	if len(news) > 0 {
		line = append(line, "offset", news[0].Off, "length", news[0].N)
	}
	f.dir.hooks.Log.Error("wrong bytes were dropped", line...)
}

// compare returns what others have taken back since the last comparison, and how
// many pieces they found to be wrong.
func (c *changes) compare(f *File, all bool) (news []Stretch, wrong int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun, ended, counted := f.State.taken()
	if len(c.calls) == 0 {
		return nil, 0
	}
	if begun == c.begun.Load() && ended == c.ended {
		if !all || begun == ended {
			return nil, 0
		}
		if c.idle++; c.idle < watchUnended {
			return nil, 0
		}
	}
	c.idle = 0
	missed := begun - c.begun.Load()
	c.begun.Store(begun)
	over := ended != c.ended // what began before
	c.ended = ended
	if news = c.turnedLocked(f); missed >= Turns { // nobody knows any more what they were
		news = []Stretch{{}}
	}
	for _, s := range news {
		c.todoLocked(s)
	}
	wrong = max(0, int64(counted-c.wrong))
	c.wrong = max(c.wrong, counted)
	news = append(c.early, news...)
	if c.early = nil; wrong == 0 && begun != ended && !over {
		c.early = news[:min(1, len(news))]
	}
	return news, wrong
}

// turnedLocked returns where the pieces lie whose turns are not those that
// were seen, and notes them.
func (c *changes) turnedLocked(f *File) (news []Stretch) {
	words := f.State.shared()
	from, to := -1, -1 // of the last run of such pieces
	flush := func() {
		if from >= 0 {
			news = append(news, f.Grid.Stretch(from, to))
		}
	}
	f.State.Each(func(i int) {
		word := Word(atomic.LoadUint64(&words[i]))
		if word&WordTurn == c.seen[i] {
			return
		}
		c.sawLocked(i, word)
		f.dropBeside(i)
		if f.State.readOnly { // this process cannot write the word itself
			atomic.StoreUint64(&f.State.words[i], uint64(word))
		}
		if i != to {
			flush()
			from = i
		}
		to = i + 1
	})
	flush()
	return news
}
