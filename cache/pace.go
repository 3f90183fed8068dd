package cache

import (
	"errors"
	"sync"
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
// are left to the backlog.
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
	if until := now.Add(behindFor); until.After(p.until) && (slow && now.Before(p.until) || p.owed > owedMost) {
		p.until = until
	}
	return err
}
