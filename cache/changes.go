package cache

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Whoever shows a file keeps copies of what it has read: the kernel's pages.
// They must go when a piece is taken back, by this process or by another. Each
// process compares the turns in the words with those that it has seen: at
// once where it took the piece back itself, else when a counter in the state's
// header has moved, which is looked at with each read and now and then.

const (
	// watchPause is between two looks at the counters of files that nobody
	// reads.
	watchPause = time.Second
	// watchUnended is after how many such looks the turns are compared where
	// a process seems to be taking pieces back: it may have died over it.
	watchUnended = 16
	// turns is how many turns there are. Who has missed so many changes does
	// not know any more what they were.
	turns = wordTurn>>wordTurnOne + 1
)

// stretch is bytes [off, off+n) of a file; all of it where n is 0.
type stretch struct{ off, n int64 }

// stretch returns where pieces [from, to) lie in the file. There is nothing
// but holes between them.
func (e *entry) stretch(from, to int) stretch {
	start, _ := e.grid.extent(from)
	last, n := e.grid.extent(to - 1)
	s := stretch{off: -1}
	for run := range e.file.Map.Payload(start, 1) {
		s.off = run.Offset
	}
	for run := range e.file.Map.Payload(last+n-1, 1) {
		s.n = run.Offset + 1 - s.off
	}
	return s
}

// changes is what is known of pieces that were taken back, and who is told.
type changes struct {
	begun atomic.Uint64 // the state's counter at the last look, with what this process added

	mu    sync.Mutex
	calls []func(off, n int64)
	seen  map[int]uint64 // turns of pieces, where they are not 0
	wrong uint64         // the state's counter, with what this process added
	idle  int            // looks since the last comparison
	todo  []stretch      // still to be told
	tells bool           // somebody is at it
}

// sawLocked notes the word that this process has given to a piece.
func (c *changes) sawLocked(i int, word uint64) {
	if turn := word & wordTurn; turn != 0 {
		if c.seen == nil {
			c.seen = map[int]uint64{}
		}
		c.seen[i] = turn
	} else {
		delete(c.seen, i)
	}
}

// todoLocked has a stretch told to those who keep copies.
func (c *changes) todoLocked(s stretch) {
	if len(c.calls) == 0 {
		return
	}
	if n := len(c.todo); n > 0 && c.todo[n-1].n > 0 && c.todo[n-1].off+c.todo[n-1].n == s.off {
		c.todo[n-1].n += s.n
	} else {
		c.todo = append(c.todo, s)
	}
	if !c.tells {
		c.tells = true
		go c.tell()
	}
}

// tell tells of what is to be told. It holds no lock meanwhile, and nobody
// waits for it.
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
				call(s.off, s.n)
			}
		}
	}
}

// quiet ends the telling: the file is being closed.
func (c *changes) quiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls, c.todo = nil, nil
}

// OnDrop has call called when bytes [off, off+n) of the file, or with n 0 all
// of it, may have been handed out and are not what is read now: whoever keeps
// copies must drop them. What was taken back before is told too, for copies
// that another process has left. call may take its time.
func (f *File) OnDrop(call func(off, n int64)) {
	e := f.entry
	c := &e.changes
	c.mu.Lock()
	c.calls = append(c.calls, call)
	c.seen = nil
	c.begun.Store(0)
	c.mu.Unlock()
	e.compareTurns(true)
}

// noticed reports whether nothing was begun since the last look.
func (e *entry) noticed() bool {
	return atomic.LoadUint64(e.state.counter(offBegun)) == e.changes.begun.Load()
}

// compareTurns looks whether other processes have taken pieces back, and has
// copies of them dropped. all is for who looks now and then, and so finds what
// a process has left undone.
func (e *entry) compareTurns(all bool) {
	news, wrong := e.changed(all)
	if wrong == 0 {
		return
	}
	e.cache.counts.foundWrong(byElsewhere, wrong)
	line := []any{"file", e.file.Name, "pieces", wrong, "found_by", byElsewhere, "source", e.source()}
	if len(news) > 0 {
		line = append(line, "offset", news[0].off, "length", news[0].n)
	}
	e.cache.log.Error("wrong bytes were dropped", line...)
}

// changed returns what others have taken back since the last look, and how
// many pieces they found to be wrong.
func (e *entry) changed(all bool) (news []stretch, wrong int64) {
	c := &e.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	begun, ended, counted := e.state.taken()
	if len(c.calls) == 0 {
		return nil, 0
	}
	if begun == c.begun.Load() {
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
	if news = e.turnedLocked(); missed >= turns {
		news = []stretch{{}}
	}
	for _, s := range news {
		c.todoLocked(s)
	}
	wrong = max(0, int64(counted-c.wrong))
	c.wrong = max(c.wrong, counted)
	return news, wrong
}

// turnedLocked returns where the pieces lie whose turns are not those that
// were seen, and notes them.
func (e *entry) turnedLocked() (news []stretch) {
	c := &e.changes
	words := e.state.shared()
	from, to := -1, -1 // of the last run of such pieces
	flush := func() {
		if from >= 0 {
			news = append(news, e.stretch(from, to))
		}
	}
	turned := func(i int) {
		word := atomic.LoadUint64(&words[i])
		if word&wordTurn == c.seen[i] {
			return
		}
		c.sawLocked(i, word)
		e.cache.spare.drop(e, i, i+1)
		if e.state.readOnly { // what this process has noted of it is of no use
			atomic.StoreUint64(&e.state.words[i], word)
		}
		if i != to {
			flush()
			from = i
		}
		to = i + 1
	}
	e.state.each(turned)
	flush()
	return news
}

// watchLoop looks now and then at files that others have open too, and at once
// when a reader has noticed something.
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
			e.compareTurns(all)
			e.unuse()
		}
	}
}

// openEntries returns the open files. The caller ends its use of each.
func (c *Cache) openEntries() (all []*entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.use() {
			all = append(all, e)
		}
	}
	return all
}

// notice has the open files looked at soon.
func (c *Cache) notice() {
	select {
	case c.noticed <- struct{}{}:
	default: // somebody has said so already
	}
}
