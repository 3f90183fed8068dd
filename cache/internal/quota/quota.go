// Package quota bounds what a cache takes on disk. It measures the directory
// now and then, in one goroutine, evicts what nobody uses, and hands out how
// much may be written until it measures again.
package quota

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

const (
	// freeShare is the part of the file system that is left free if no size
	// was given: one tenth.
	freeShare = 10
	// stepShare is how much may be written before the disk is measured again,
	// as a part of the limit; at least stepLeast bytes.
	stepShare   = 64
	stepLeast   = 1 << 20
	reserveMost = 64 << 20
	// measureAgain is how long a measurement that found no room stays valid.
	measureAgain = time.Second
	// measureEarly is the step, in bytes, from which on the next measurement
	// begins when half of the step is left: bytes arrive faster than a large
	// cache is measured. A smaller step is used up first.
	measureEarly = 64 << 20
)

var (
	// ErrFull is the error of Take if there is no room on disk.
	ErrFull = errors.New("no room in the cache")
	// ErrMeasuring is the error of Take if it is not known yet.
	ErrMeasuring = errors.New("the cache is being measured")
)

// Options are what a Quota is made with.
type Options struct {
	Dir   *disk.Dir
	Size  int64         // bytes on disk; 0: as much as leaves a tenth of the file system free
	Grace time.Duration // how long Take waits for a measurement
	// Evict makes room for over bytes, of files that nobody uses, in the
	// given order, and returns how many it has made.
	Evict  func(files []disk.Stored, over int64) (freed int64)
	Before func() // called before the directory is measured
	After  func() // called after that
}

// Quota is what this process knows of the space that the cache may take. It is
// safe for concurrent use.
type Quota struct {
	opts Options

	mu        sync.Mutex    // never held over I/O
	left      int64         // bytes that may be written before the next measurement
	step      int64         // what the last one left
	taken     int64         // since the one under way has begun
	measuring chan struct{} // closed when the one under way has ended; nil: there is none
	began     time.Time     // when it began
	short     bool          // somebody waits for it
	ended     time.Time     // when the last one ended; zero: never
	refused   bool          // it found no room
	closed    bool
}

// New returns a Quota that has measured nothing yet.
func New(opts Options) *Quota { return &Quota{opts: opts} }

// Close waits for the measurement under way; there is no other after it.
func (q *Quota) Close() {
	q.mu.Lock()
	q.closed = true
	measuring := q.measuring
	q.mu.Unlock()
	if measuring != nil {
		<-measuring
	}
}

// Take reserves n bytes on disk for what is about to be written. If the disk
// takes longer than the grace to measure, the error is ErrMeasuring, and again
// is closed when Take can be called again. If there is no room, the error is
// ErrFull.
func (q *Quota) Take(ctx context.Context, n int64) (again <-chan struct{}, err error) {
	for {
		measured, began, err := q.take(n)
		if measured == nil {
			return nil, err
		}
		if !Await(ctx, measured, q.opts.Grace-time.Since(began)) {
			return measured, ErrMeasuring
		}
	}
}

// Await blocks until done is closed, for at most so long, or until ctx ends.
// It reports whether done is closed.
func Await(ctx context.Context, done <-chan struct{}, most time.Duration) bool {
	select {
	case <-done:
		return true
	default:
	}
	if most <= 0 {
		return false
	}
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// take takes n bytes of what is left, or returns the measurement that must end
// before, with the time when it began.
func (q *Quota) take(n int64) (measured <-chan struct{}, began time.Time, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.left >= n:
		q.left -= n
		q.taken += n
		if q.step >= measureEarly && q.left < q.step/2 {
			q.measureLocked(0)
		}
		return nil, began, nil
	case q.measuring == nil && (q.closed || q.refused && time.Since(q.ended) < measureAgain):
		return nil, began, ErrFull
	}
	q.measureLocked(n)
	q.short = q.measuring != nil
	return q.measuring, q.began, nil
}

// measureLocked begins a measurement, if none is under way.
func (q *Quota) measureLocked(n int64) {
	if q.measuring != nil || q.closed {
		return
	}
	q.measuring, q.began, q.taken = make(chan struct{}), time.Now(), 0
	go q.measure(n)
}

// measure measures the directory, evicts what is over the limit with n bytes
// more, and sets how much may be written until the next measurement.
func (q *Quota) measure(n int64) {
	q.opts.Before()
	q.opts.Dir.SweepSpools()
	files, used := q.opts.Dir.Usage()
	limit := q.Limit(used)
	step := max(limit/stepShare, stepLeast, n)
	// Other processes may still write what their last measurement allowed
	// them, and nobody counts the small files.
	reserve := max(2*step, min(limit/8, reserveMost))
	if over := used + step + reserve - limit; over > 0 {
		used -= q.opts.Evict(files, over)
	}
	q.measured(min(step, limit-used-reserve), n)
	q.opts.After()
}

// measured ends the measurement under way: step bytes may be written, and n are
// wanted.
func (q *Quota) measured(step, n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.step = step
	q.left = step - q.taken // which may not have been measured
	q.refused = step < n
	q.ended = time.Now()
	close(q.measuring)
	q.measuring, q.short = nil, false
}

// Limit returns how many bytes the cache may take, given how many it takes now.
func (q *Quota) Limit(used int64) int64 {
	if q.opts.Size > 0 {
		return q.opts.Size
	}
	st, err := q.opts.Dir.Statfs()
	if err != nil {
		return math.MaxInt64 / 2
	}
	block := int64(st.Bsize)
	return used + int64(st.Bavail)*block - int64(st.Blocks)*block/freeShare
}

// Full reports whether the last measurement found no room.
func (q *Quota) Full() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refused
}

// Measuring reports whether somebody waits for a measurement that takes long.
func (q *Quota) Measuring() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.measuringLocked()
}

// Tight reports whether what is fetched may have to be held in memory: there
// is no room, or it takes long to find out.
func (q *Quota) Tight() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.refused || q.measuringLocked()
}

func (q *Quota) measuringLocked() bool { return q.short && time.Since(q.began) > q.opts.Grace }

// Refused notes that a write failed for which Take had found room. The next
// Take measures first.
func (q *Quota) Refused() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left = 0
}
