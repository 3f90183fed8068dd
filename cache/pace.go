package cache

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// quickWrite is what any write of a piece may take. While several wait for a
	// disk, each takes as long as all of them.
	quickWrite = 4 * time.Millisecond
	// owedMost is for how much longer than not most jobs may have been in slow
	// writes lately.
	owedMost = 100 * time.Millisecond
	// behindFor is how long a disk that was found slow counts as slow after the
	// last slow write.
	behindFor = time.Second
)

// errSlowDisk is why a piece is not kept if the disk is slower than the link.
var errSlowDisk = errors.New("the disk does not keep up")

// pace is whether the disk keeps up with the link. While it does not, one piece
// at a time is written of those that readers can have from memory; the others
// are not kept.
type pace struct {
	jobs func() int // how many run

	mu      sync.Mutex // never held over I/O
	writing int
	owed    time.Duration
	at      time.Time // when that was counted
	until   time.Time // the disk counts as slow until then
	probing bool      // such a piece is being written
}

// behind reports whether the disk does not keep up.
func (p *pace) behind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.until)
}

// admit reports whether a piece is to be written that readers can have from
// memory. If so, done must be called after that.
func (p *pace) admit() (done func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.until) {
		return func() {}, true
	}
	if p.probing {
		return nil, false
	}
	p.probing = true
	return func() {
		p.mu.Lock()
		p.probing = false
		p.mu.Unlock()
	}, true
}

// time calls write, which writes a piece, and returns its error. If most jobs are
// in slow writes, for most of the time, the disk is slower than the link.
func (p *pace) time(write func() error) error {
	p.mu.Lock()
	p.writing++
	p.mu.Unlock()
	began := time.Now()
	err := write()
	now, jobs := time.Now(), p.jobs()
	p.mu.Lock()
	defer p.mu.Unlock()
	took, passed := now.Sub(began), now.Sub(p.at)
	p.at = now
	slow := took >= quickWrite
	if most := 2*p.writing > jobs; !slow || !most {
		took = 0
	}
	p.writing--
	p.owed = min(max(0, p.owed+2*min(took, passed)-passed), 2*owedMost)
	if slow && now.Before(p.until) || p.owed > owedMost {
		p.until = now.Add(behindFor)
	}
	return err
}

// refill has a file prefetched again of which some was not kept because the disk did
// not keep up.
type refill struct {
	wanted  atomic.Bool // all of the file is to be prefetched
	waiting atomic.Bool // a goroutine waits for the disk
}

// later has what is missing of the file prefetched when the disk keeps up again,
// if all of it is wanted.
func (r *refill) later(e *entry) {
	if !r.wanted.Load() || r.waiting.Swap(true) || !e.flights.use() {
		return
	}
	go func() {
		defer e.flights.unuse()
		t := time.NewTicker(prefetchPause)
		defer t.Stop()
		for again := true; again; again = e.cache.pace.behind() {
			select {
			case <-t.C:
			case <-e.ctx.Done():
				return
			}
		}
		r.waiting.Store(false)
		for i := range e.grid.Pieces() {
			if !e.state.Has(i) {
				e.held.Drop(i) // a piece that is held is not fetched
			}
		}
		e.flights.queueMissing(prefetched, 0, e.grid.Pieces(), 0)
	}()
}
