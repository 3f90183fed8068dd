package cache

import (
	"sync"
	"time"
)

const (
	// quickWrite is what any write of a piece may take. While several wait for a
	// disk, each takes as long as all of them.
	quickWrite = 4 * time.Millisecond
	// owedMost is for how much longer than not most jobs may have written to the
	// disk lately.
	owedMost = 100 * time.Millisecond
	// lateWriters is how many pieces are written at a time that nobody waits
	// for.
	lateWriters = 2
)

// late has the pieces that readers were given from memory because the disk did
// not keep up. They are written when their turn comes, if the overlay still holds
// them by then.
type late struct {
	write func(p *latePiece) // writes a piece that is still held
	jobs  func() int         // how many run

	mu      sync.Mutex // never held over I/O
	writing int        // pieces that readers wait for, or will want next
	owed    time.Duration
	at      time.Time // when that was counted
	queue   []*latePiece
	writers int
}

// latePiece is a piece that is still to be written.
type latePiece struct {
	entry    *entry
	piece    int
	size     int64 // of its payload, which the overlay holds
	verified bool
	drops    int64 // as in disk.Incoming
	done     func()
}

// behind reports whether readers should not wait for the disk.
func (l *late) behind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)+l.writers > 0 || l.owed-time.Since(l.at) > owedMost
}

// time calls write, which writes a piece for a reader, and returns its error. If
// most jobs are in a slow write, for most of the time, the disk is slower than
// the link.
func (l *late) time(write func() error) error {
	l.mu.Lock()
	l.writing++
	l.mu.Unlock()
	began := time.Now()
	err := write()
	now := time.Now()
	jobs := l.jobs()
	l.mu.Lock()
	defer l.mu.Unlock()
	took, passed := now.Sub(began), now.Sub(l.at)
	l.at = now
	if took < quickWrite || 2*l.writing <= jobs {
		took = 0
	}
	l.owed = min(max(0, l.owed+2*min(took, passed)-passed), 2*owedMost)
	l.writing--
	return err
}

// add queues a piece, which is a user of its entry until p.done is called.
func (l *late) add(p *latePiece) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, p)
	if l.writers < lateWriters {
		l.writers++
		go l.run()
	}
}

// run writes pieces until none is queued.
func (l *late) run() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.writers--
			l.mu.Unlock()
			return
		}
		p := l.queue[0]
		l.queue[0], l.queue = nil, l.queue[1:]
		l.mu.Unlock()
		l.write(p)
		p.done()
	}
}
