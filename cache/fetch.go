package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// errPaused says that a replay or a prefetch is not worth doing now.
var errPaused = errors.New("not now")

// run does one job, in a goroutine of its own. Every flight of the job has
// landed or is queued again when it returns.
func (c *Cache) run(j *job) {
	e := j.entry
	if j.stream {
		e.stream(j, nil)
		return
	}
	defer e.prefetchOn(j)
	from, to, held := e.claim(j)
	if from == to {
		return
	}
	var err error
	switch {
	case e.file.Index != nil:
		from, err = e.fetchGranules(j, from, to)
	case e.grid.whole(j.part):
		err = e.fetchOnce(j, from)
	default:
		from, err = e.fetchPieces(j, from, to)
	}
	e.state.unlockPieces(j.from, held)
	if err != nil && err != errPaused {
		e.failed(j, from, to, err)
	} else {
		e.requeue(from, to) // what was left
	}
	e.checkComplete()
}

// claim locks the job's pieces among processes and returns the run of
// them that is still missing, which is empty when nothing is left to do.
// The lock reaches up to held. The rest is queued again, or followed while
// another process fetches it.
func (e *entry) claim(j *job) (from, to, held int) {
	n := j.to - j.from
	if !j.alone {
		for ; n > 0; n /= 2 {
			if got, err := e.state.tryLockPieces(j.from, j.from+n); got || err != nil {
				break // without locks the fetch goes on: the bytes are the same
			}
		}
	}
	if n == 0 {
		e.requeue(j.from+1, j.to)
		e.follow(j.from)
		return 0, 0, 0
	}
	e.requeue(j.from+n, j.to)
	e.copyPieces(j.part, j.from, j.from+n, e.cache.opts.grace, e.copied)
	from = j.from
	for from < j.from+n && e.landed(from) {
		from++
	}
	to = from
	for to < j.from+n && !e.landed(to) {
		to++
	}
	e.requeue(to, j.from+n)
	if from == to {
		e.state.unlockPieces(j.from, j.from+n)
		e.checkComplete()
	}
	return from, to, j.from + n
}

// landed says that nobody waits for a job to bring piece i: it is present,
// or was handed over.
func (e *entry) landed(i int) bool {
	if e.state.has(i) {
		e.land(i, nil)
	}
	return !e.flying(i)
}

// flying says that piece i is on its way, or queued.
func (e *entry) flying(i int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.flights[i] != nil
}

// fetchOnce fetches a part that is one piece, unless the same bytes are
// just being fetched as another part.
func (e *entry) fetchOnce(j *job, piece int) error {
	part := j.part
	done := e.cache.alone(j.ctx, e, part)
	if done == nil {
		return context.Cause(j.ctx)
	}
	defer done()
	e.copyPieces(part, piece, piece+1, e.cache.opts.grace, e.copied)
	if e.landed(piece) {
		return nil
	}
	err := e.fetchWhole(j, piece)
	if err == nil {
		e.cache.index.note(e, part)
	}
	return err
}

// fetchWhole fetches a part that is one piece and checks it before a byte
// of it is used.
func (e *entry) fetchWhole(j *job, piece int) (err error) {
	part := j.part
	p := &e.file.Parts[part]
	weight := p.StoredSize
	if p.Encoding != layout.Raw {
		weight += p.Length
	}
	weight, err = e.reserve(j.ctx, weight)
	if err != nil {
		return err
	}
	defer e.cache.buffers.Release(weight)
	if j.priority >= replayed && e.cache.measuring() {
		return errPaused // it waited for that memory
	}

	stored := getBuffer(p.StoredSize)
	defer putBuffer(stored)
	body, _, err := e.link.Open(j.ctx, e.stored(part, 0, p.StoredSize), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	defer func() { e.blame(p, body, err) }()
	if _, err := io.ReadFull(body, stored); err != nil {
		return transport.NoEOF(err)
	}
	crashpoint.Reach("part fetched")
	if sha := sha256.Sum256(stored); "sha256:"+hex.EncodeToString(sha[:]) != p.Digest {
		return e.wrong(part, "whole")
	}
	payload := stored
	if p.Encoding != layout.Raw {
		decoded := getBuffer(p.Length)
		defer putBuffer(decoded)
		if payload, err = zstdframe.Decode(decoded[:0], stored, p.Length); err != nil {
			return &contentError{error: errors.Join(e.wrong(part, "frame"), err)}
		}
		crashpoint.Reach("part decoded")
	}
	e.arrived(piece, payload, true, byFetch, nil)
	return nil
}

// fetchPieces fetches raw pieces [from, to) of a part with one request,
// each usable as soon as it is there. It returns the first piece that was
// not fetched; that is no error when the registry sent the whole blob and
// a stream goes on with it.
func (e *entry) fetchPieces(j *job, from, to int) (int, error) {
	part := j.part
	p := &e.file.Parts[part]
	size := e.grid.size[part]
	weight, err := e.reserve(j.ctx, size)
	if err != nil {
		return from, err
	}
	defer e.cache.buffers.Release(weight)

	first, _ := e.grid.extent(from)
	last, n := e.grid.extent(to - 1)
	length := last + n - first
	body, whole, err := e.link.Open(j.ctx, e.stored(part, first-p.Offset, length), func() { j.adopted = e.beginStream(part) })
	switch {
	case err != nil:
		return from, err
	case j.adopted:
		e.adopt(j, body)
		return from, nil
	case whole && length < p.StoredSize:
		if body != nil {
			_ = body.Close() // it is being streamed already
		}
		return from, nil
	}
	defer body.Close()
	buf := getBuffer(size)
	defer putBuffer(buf)
	for ; from < to; from++ {
		_, n := e.grid.extent(from)
		if _, err := io.ReadFull(body, buf[:n]); err != nil {
			return from, transport.NoEOF(err)
		}
		crashpoint.Reach("piece fetched")
		verified, err := e.checkPiece(from, buf[:n])
		if err != nil {
			e.blame(p, body, err)
			return from, err
		}
		e.arrived(from, buf[:n], verified, byFetch, nil)
	}
	return to, nil
}

// reserve waits for room for n bytes in memory. What is larger than all
// the room there is gets all of it.
func (e *entry) reserve(ctx context.Context, n int64) (int64, error) {
	n = min(n, e.cache.opts.Memory)
	if err := e.cache.buffers.Acquire(ctx, n); err != nil {
		return 0, err
	}
	return n, nil
}

// failed ends or repeats what is left of a job: pieces that somebody
// waits for are queued again after a pause, unless err is final, and those
// to be prefetched as well.
func (e *entry) failed(j *job, from, to int, err error) {
	slow := errors.Is(err, transport.ErrSlow)
	var pause time.Duration
	if !slow { // that one is counted by the link
		// Whoever is told of the failure finds it counted.
		e.cache.counts.retried(err)
		pause = e.link.Pause(err)
	}
	e.mu.Lock()
	for end := e.lastTryLocked(from, to, err); from < end; from++ {
		e.landLocked(from, err, nil)
	}
	want := e.looseLocked(from, to, err)
	e.mu.Unlock()
	if slow {
		e.cache.queue.push(demanded, want...)
		return
	}
	e.pushLater(demanded, pause, want)
	if j.priority == prefetched {
		e.pushLater(prefetched, pause, []span{{entry: e, from: from, to: to}})
	}
}

// lastTryLocked says that err ends the reads that wait for pieces from
// first on, and for how many of those. Bytes may be damaged on the way
// once; the second time they are wrong where they come from. The next read
// asks again.
func (e *entry) lastTryLocked(first, to int, err error) (end int) {
	var wrong *contentError
	switch {
	case e.ctx.Err() != nil:
		return to
	case !errors.As(err, &wrong):
		if transport.Final(err) {
			return to
		}
	case !wrong.elsewhere:
		if e.bad[first]++; e.bad[first] > 1 {
			delete(e.bad, first)
			if wrong.all {
				return to
			}
			return first + 1 // what comes after it may be right
		}
	}
	return first
}

// prefetchOn sees to it that what is left of a prefetch is done later:
// pieces that nobody waits for are forgotten when a request ends early.
func (e *entry) prefetchOn(j *job) {
	if j.priority != prefetched || e.unkept || e.cache.full() || e.state.hasAll(j.from, j.to) {
		return
	}
	e.pushLater(prefetched, prefetchPause, []span{{entry: e, from: j.from, to: j.to}})
}

// prefetchPause is how long a prefetch that got stuck waits.
const prefetchPause = 500 * time.Millisecond

// pushLater queues spans after a pause.
func (e *entry) pushLater(p priority, pause time.Duration, want []span) {
	if len(want) == 0 || !e.use() {
		return
	}
	go func() {
		defer e.unuse()
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-t.C:
			e.cache.queue.push(p, want...)
		case <-e.ctx.Done():
		}
	}()
}

// Bounds of the wait between two looks at what another process fetches.
const (
	followFirst = time.Millisecond
	followMost  = 20 * time.Millisecond
)

// follow watches a piece that another process has claimed. When that
// process makes no progress, the piece is fetched here as well.
func (e *entry) follow(piece int) {
	if !e.use() {
		e.requeue(piece, piece+1)
		return
	}
	go func() {
		defer e.unuse()
		came, err := e.comes(e.ctx, piece)
		if err == nil && came {
			e.land(piece, nil)
			e.checkComplete()
			return
		}
		e.mu.Lock()
		if fl := e.flights[piece]; fl != nil {
			fl.alone = true
		}
		e.mu.Unlock()
		e.requeue(piece, piece+1)
	}()
}

// comes waits until a piece is present, or until nothing of the file has
// come for so long that its fetcher must be taken for dead or stopped.
func (e *entry) comes(ctx context.Context, piece int) (bool, error) {
	pause := followFirst
	seen, since := e.present(), time.Now()
	for !e.state.has(piece) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, ctx.Err()
		}
		pause = min(2*pause, followMost)
		if n := e.present(); n != seen {
			seen, since = n, time.Now()
		} else if time.Since(since) > e.cache.opts.patience {
			return false, nil
		}
		if !e.state.heldElsewhere(piece) { // its fetcher has let go; it may have failed
			return e.state.has(piece), nil
		}
	}
	return true, nil
}
