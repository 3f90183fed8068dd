package cache

import (
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
)

// backlog are pieces of a file that were not written because the disk did not keep up.
// They are written one at a time, as long as the overlay has them. What the overlay has
// dropped is fetched when the disk keeps up again, if all of the file is wanted.
type backlog struct {
	entry *entry

	mu     sync.Mutex // never held over I/O
	wanted bool       // all of the file is wanted
	late   []latePiece
	bytes  int64 // of the late pieces, overlay.Size at most
	short  bool  // pieces are missing that nobody will write
	busy   bool  // clear is called at intervals
}

// latePiece is a piece without its payload, which the overlay has.
type latePiece struct {
	*disk.Incoming
	turn disk.Word // of its word when it came: another process may have found it wrong since
}

// add takes a piece that was put into the overlay.
func (b *backlog) add(p *disk.Incoming) {
	late := *p
	late.Sum()
	late.Payload, late.By, late.Clone, late.Spare = nil, disk.ByLate, nil, false
	b.mu.Lock()
	b.late = append(b.late, latePiece{&late, b.turn(p.Piece)})
	b.bytes += b.size(p.Piece)
	var lost []latePiece
	for b.bytes > overlay.Size && len(b.late) > 1 {
		lost = append(lost, b.nextLocked())
	}
	b.mu.Unlock()
	for _, p := range lost {
		b.lose(p)
	}
	b.start()
}

// turn returns how often piece i was taken back.
func (b *backlog) turn(i int) disk.Word { return b.entry.state.Word(i) & disk.WordTurn }

// size returns the bytes of piece i.
func (b *backlog) size(i int) int64 {
	_, n := b.entry.grid.Extent(i)
	return n
}

// lose notes that a piece is not kept.
func (b *backlog) lose(p latePiece) {
	e := b.entry
	if e.state.Has(p.Piece) {
		return // it came again
	}
	b.missed(errStale)
	if b.turn(p.Piece) == p.turn { // else it was wrong
		e.cache.counts.notKept.Add(b.size(p.Piece))
		e.cache.report.notKept(e.file.Name, errSlowDisk)
	}
}

// missed takes the error of a piece that was to be written late.
func (b *backlog) missed(err error) {
	if err == errStale {
		b.mu.Lock()
		b.short = true
		b.mu.Unlock()
		b.start()
	}
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
	if !b.busy && (len(b.late) > 0 || b.fetchesLocked()) {
		b.busy = b.entry.flights.every(prefetchPause, b.clear)
	}
}

// clear writes what is late, and then has the rest fetched. It returns false when
// nothing is left to do.
func (b *backlog) clear() (again bool) {
	b.write()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fetchesLocked() && len(b.late) == 0 && !b.entry.cache.pace.behind() {
		b.short = false
		b.mu.Unlock()
		b.fetch()
		b.mu.Lock()
	}
	b.busy = len(b.late) > 0 || b.fetchesLocked()
	return b.busy
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
		p, ok := b.next()
		if ok {
			b.writePiece(p)
		}
		if written(); !ok {
			return
		}
	}
}

// writePiece writes a piece, if the overlay still has it.
func (b *backlog) writePiece(p latePiece) {
	p.Payload = b.entry.held.Peek(p.Piece)
	if p.Payload == nil || disk.Sum(p.Payload) != p.Sum() || !p.Verified && b.turn(p.Piece) != p.turn {
		b.lose(p)
		return
	}
	b.missed(b.entry.keepHeld(p.Incoming))
}

// next takes a piece. ok is false if there is none.
func (b *backlog) next() (p latePiece, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.late) == 0 {
		return p, false
	}
	return b.nextLocked(), true
}

func (b *backlog) nextLocked() latePiece {
	p := b.late[0]
	b.late[0] = latePiece{}
	b.late = b.late[1:]
	b.bytes -= b.size(p.Piece)
	return p
}

// fetchesLocked reports whether pieces are to be fetched again.
func (b *backlog) fetchesLocked() bool {
	return b.short && b.wanted && !b.entry.cache.quota.Full()
}

// giveUp counts what was not written until the file is closed. Nothing is added any
// more.
func (b *backlog) giveUp() {
	for p, ok := b.next(); ok; p, ok = b.next() {
		b.lose(p)
	}
}

// fetch has prefetched what is not on disk.
func (b *backlog) fetch() {
	e := b.entry
	for i := range e.grid.Pieces() {
		if !e.state.Has(i) && !e.held.Distrusts(i) {
			e.held.Drop(i) // a piece that is held is not fetched
		}
	}
	e.flights.queueMissing(prefetched, 0, e.grid.Pieces(), 0)
}
