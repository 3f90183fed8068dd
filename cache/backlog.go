package cache

import (
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// backlog is what of a file was not written because the disk did not keep up. It is
// written from memory, one piece at a time, as far as there is room for it there. The
// rest is fetched when the disk keeps up again, if all of the file is wanted.
type backlog struct {
	entry *entry

	mu     sync.Mutex // never held over I/O
	wanted bool       // all of the file is
	held   []waitingPiece
	short  bool // there are more pieces, which are not held
	busy   bool // a goroutine runs clear
}

// waitingPiece is a piece that waits in memory to be written.
type waitingPiece struct {
	*disk.Incoming
	done func() // gives its room back
}

// add takes a piece that the overlay holds, so that readers have it.
func (b *backlog) add(p *disk.Incoming) {
	e := b.entry
	done, ok := e.held.BeginLater(int64(len(p.Payload)))
	if !ok {
		e.cache.counts.notKept.Add(int64(len(p.Payload)))
		e.cache.report.notKept(e.file.Name, errSlowDisk)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if ok {
		b.held = append(b.held, waitingPiece{p, done})
	} else {
		b.short = true
	}
	b.startLocked()
}

// want notes that all of the file is wanted.
func (b *backlog) want() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = true
	b.startLocked()
}

// startLocked has the backlog cleared, if there is anything to do.
func (b *backlog) startLocked() {
	if !b.busy && (len(b.held) > 0 || b.short && b.wanted) && b.entry.flights.use() {
		b.busy = true
		go b.clear()
	}
}

// clear writes what is held, and then has the rest fetched.
func (b *backlog) clear() {
	e := b.entry
	defer e.flights.unuse()
	t := time.NewTicker(prefetchPause)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-e.ctx.Done():
			return
		}
		b.write()
		if b.cleared() {
			return
		}
	}
}

// write writes what is held, one piece at a time, until it may not, or nothing is
// left.
func (b *backlog) write() {
	e := b.entry
	for e.ctx.Err() == nil {
		written, ok := e.cache.pace.admit()
		if !ok {
			return
		}
		p, ok := b.next()
		if ok {
			e.keepHeld(p.Incoming)
			p.done()
		}
		if written(); !ok {
			return
		}
	}
}

// next takes a piece that is held.
func (b *backlog) next() (p waitingPiece, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.held) == 0 {
		return p, false
	}
	p, b.held[0] = b.held[0], waitingPiece{}
	b.held = b.held[1:]
	return p, true
}

// cleared reports whether nothing is left to do. What is wanted and not held is
// queued.
func (b *backlog) cleared() bool {
	b.mu.Lock()
	again := b.short && b.wanted
	if len(b.held) > 0 || again && b.entry.cache.pace.behind() {
		b.mu.Unlock()
		return false
	}
	b.short, b.busy = b.short && !again, false
	b.mu.Unlock()
	if again {
		b.fetch()
	}
	return true
}

// fetch has prefetched what is not on disk.
func (b *backlog) fetch() {
	e := b.entry
	for i := range e.grid.Pieces() {
		if !e.state.Has(i) {
			e.held.Drop(i) // a piece that is held is not fetched
		}
	}
	e.flights.queueMissing(prefetched, 0, e.grid.Pieces(), 0)
}

// drop gives up what is held. Nothing may be added any more.
func (b *backlog) drop() {
	for _, p := range b.held {
		p.done()
	}
	b.held = nil
}
