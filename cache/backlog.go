package cache

import (
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
)

// backlog is what of a file was not written because the disk did not keep up. It is
// written one piece at a time, as long as the overlay has it. What that had no room for
// is fetched when the disk keeps up again, if all of the file is wanted.
type backlog struct {
	entry *entry

	mu     sync.Mutex // never held over I/O
	wanted bool       // all of the file is
	late   []*disk.Incoming
	bytes  int64 // of them, overlay.Size at most; their payload is the overlay's
	short  bool  // others were not kept
	busy   bool  // a goroutine runs clear
}

// add takes a piece that was put into the overlay.
func (b *backlog) add(p *disk.Incoming) {
	late := *p
	late.Sum()
	late.Payload, late.By, late.Clone, late.Spare = nil, disk.ByLate, nil, false
	b.mu.Lock()
	b.late = append(b.late, &late)
	b.bytes += b.size(&late)
	var lost []*disk.Incoming
	for b.bytes > overlay.Size && len(b.late) > 1 {
		lost = append(lost, b.nextLocked())
	}
	b.mu.Unlock()
	for _, p := range lost {
		b.lose(p)
	}
	b.start()
}

// size returns the bytes of a piece.
func (b *backlog) size(p *disk.Incoming) int64 {
	_, n := b.entry.grid.Extent(p.Piece)
	return n
}

// lose notes that a piece is not kept.
func (b *backlog) lose(p *disk.Incoming) {
	e := b.entry
	if e.state.Has(p.Piece) {
		return // it came again
	}
	b.mu.Lock()
	b.short = true
	b.mu.Unlock()
	e.cache.counts.notKept.Add(b.size(p))
	e.cache.report.notKept(e.file.Name, errSlowDisk)
}

// want notes that all of the file is wanted.
func (b *backlog) want() {
	b.mu.Lock()
	b.wanted = true
	b.mu.Unlock()
	b.start()
}

// start has the backlog cleared, if there is anything to do.
func (b *backlog) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.busy && (len(b.late) > 0 || b.short && b.wanted) && b.entry.flights.use() {
		b.busy = true
		go b.clear()
	}
}

// clear writes what is late, and then has the rest fetched.
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

// write writes what is late, one piece at a time, until it may not, or nothing is
// left.
func (b *backlog) write() {
	e := b.entry
	for e.ctx.Err() == nil {
		written, ok := e.cache.pace.admit()
		if !ok {
			return
		}
		p := b.next()
		if p != nil {
			b.writePiece(p)
		}
		if written(); p == nil {
			return
		}
	}
}

// writePiece writes a piece, if the overlay still has it.
func (b *backlog) writePiece(p *disk.Incoming) {
	p.Payload = b.entry.held.Peek(p.Piece)
	if p.Payload == nil || disk.Sum(p.Payload) != p.Sum() {
		b.lose(p)
		return
	}
	b.entry.keepHeld(p)
}

// next takes a piece, or returns nil.
func (b *backlog) next() *disk.Incoming {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.late) == 0 {
		return nil
	}
	return b.nextLocked()
}

func (b *backlog) nextLocked() *disk.Incoming {
	p := b.late[0]
	b.late[0] = nil
	b.late = b.late[1:]
	b.bytes -= b.size(p)
	return p
}

// cleared reports whether nothing is left to do. What is wanted and not held is
// queued.
func (b *backlog) cleared() bool {
	b.mu.Lock()
	again := b.short && b.wanted
	if len(b.late) > 0 || again && b.entry.cache.pace.behind() {
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
