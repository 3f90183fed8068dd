package cache

import (
	"context"
	"errors"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/transport"
)

// job is one request: pieces [from, to) of one part. Their flights are
// running, and it is a user of the entry.
type job struct {
	entry    *entry
	part     int
	from, to int
	priority priority
	stream   bool // the part is fetched from its start to its end
	alone    bool // do not ask other processes
	ctx      context.Context
	cancel   context.CancelCauseFunc
	adopted  bool // its body lives on in a stream, and ctx with it
}

// forReader reports whether a reader waits for the job's bytes, or will want
// them next.
func (j *job) forReader() bool { return j.priority <= ahead }

// errPaused is the error of a replay or a prefetch that is not worth doing now.
var errPaused = errors.New("not now")

// memory blocks until the job may hold n bytes in memory. More than the bound
// for all jobs counts as that bound. release ends it.
func (j *job) memory(n int64) (release func(), err error) {
	c := j.entry.cache
	n = min(n, c.opts.Memory)
	if err := c.buffers.Acquire(j.ctx, n); err != nil {
		return nil, err
	}
	return func() { c.buffers.Release(n) }, nil
}

// blobRange returns the range of the job's blob from off on, n bytes long.
func (j *job) blobRange(off, n int64) transport.Range {
	p := &j.entry.file.Parts[j.part]
	return transport.Range{Digest: p.Digest, Size: p.StoredSize, Off: off, N: n, Checked: j.entry.grid.Checked(j.part)}
}

// failed ends or repeats the rest of a job. Pieces that a reader waits for, or
// that are prefetched, are queued again after a pause, unless err is final.
func (j *job) failed(from, to int, err error) {
	e := j.entry
	slow := errors.Is(err, transport.ErrSlow)
	var pause time.Duration
	if !slow { // that one is counted by the link
		// Before the waiters are woken: they find the failure counted.
		e.cache.counts.retried(err)
		pause = e.link.Pause(err)
	}
	want := e.flights.fail(from, to, err, func(bad map[int]int) int { return j.lastTry(from, to, err, bad) })
	if slow {
		e.cache.queue.push(demanded, want...)
		return
	}
	e.flights.queueLater(demanded, pause, want)
	if j.priority == prefetched {
		e.flights.queueLater(prefetched, pause, []span{{entry: e, from: from, to: to}})
	}
}

// lastTry returns the end of the pieces whose reads fail with err: those of
// [first, end) do, and the rest of [first, to) is tried again. All fail if err
// is final or the entry is being closed. Wrong bytes of piece first may be the
// fault of the way once. The second time its reads fail, or those of all pieces
// if nobody knows where the blob is wrong; but not if the source has another
// upstream. bad has how often each piece was wrong. It is reset when the reads
// fail, so the next read tries twice again.
func (j *job) lastTry(first, to int, err error, bad map[int]int) (end int) {
	var wrong *contentError
	switch {
	case j.entry.ctx.Err() != nil:
		return to
	case !errors.As(err, &wrong):
		if transport.Final(err) {
			return to
		}
	case !wrong.elsewhere:
		if bad[first]++; bad[first] > 1 {
			delete(bad, first)
			if wrong.all {
				return to
			}
			return first + 1 // what comes after it may be right
		}
	}
	return first
}

// prefetchPause is how long a prefetch that got stuck waits.
const prefetchPause = 500 * time.Millisecond

// prefetchOn queues the rest of a prefetch. Other pieces without a reader are
// forgotten when a request ends early.
func (j *job) prefetchOn() {
	e := j.entry
	if j.priority != prefetched || e.unkept() || e.cache.quota.Full() || e.state.HasAll(j.from, j.to) {
		return
	}
	e.flights.queueLater(prefetched, prefetchPause, []span{{entry: e, from: j.from, to: j.to}})
}

// copied takes a piece that another cached file had. A job waits for no disk.
func (j *job) copied(i int, payload []byte, verified bool, from *disk.Clone) {
	j.entry.keep(&disk.Incoming{Piece: i, Payload: payload, Verified: verified, By: disk.ByCopy, Clone: from}, nil)
}

// follow watches a piece that another process has claimed. When that process
// makes no progress, the piece is fetched here as well.
func (j *job) follow(piece int) {
	e := j.entry
	if !e.flights.use() {
		e.flights.requeue(piece, piece+1)
		return
	}
	go func() {
		defer e.flights.unuse()
		came, err := e.comes(e.ctx, piece)
		if err == nil && came {
			e.flights.land(piece, nil)
			e.checkComplete()
			return
		}
		e.flights.goAlone(piece)
	}()
}

// Bounds of the wait between two checks of what another process fetches.
const (
	followFirst = time.Millisecond
	followMost  = 20 * time.Millisecond
)

// comes blocks until a piece is present, or until nothing of the file has come
// for so long that its fetcher must be dead or stopped. It reports whether the
// piece is present.
func (e *entry) comes(ctx context.Context, piece int) (bool, error) {
	pause := followFirst
	seen, since := e.state.Count(), time.Now()
	for !e.state.Has(piece) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, ctx.Err()
		}
		pause = min(2*pause, followMost)
		if n := e.state.Count(); n != seen {
			seen, since = n, time.Now()
		} else if time.Since(since) > e.cache.opts.patience {
			return false, nil
		}
		if !e.state.HeldElsewhere(piece) { // its fetcher has given it up, and may have failed
			return e.state.Has(piece), nil
		}
	}
	return true, nil
}
