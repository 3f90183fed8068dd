package cache

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// beginStream claims the stream of a part for the caller, who must adopt a
// body for it. It reports whether that was free.
func (e *entry) beginStream(part int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.streams[part] || e.closing {
		return false
	}
	e.streams[part] = true
	e.jobs.Add(1)
	return true
}

// adopt goes on with a body that turned out to be a whole blob. The
// flights of the job that asked for a range wait for it to pass.
func (e *entry) adopt(asked *job, body io.ReadCloser) {
	part := asked.part
	j := &job{
		entry: e, part: part, from: e.grid.first[part], to: e.grid.first[part+1],
		priority: asked.priority, stream: true, alone: true, ctx: asked.ctx, cancel: asked.cancel,
	}
	go func() {
		defer e.unuse()
		defer j.cancel(nil)
		e.stream(j, body)
	}()
}

// stream fetches a part from its first byte to its last and fills its
// pieces as it passes them. It goes on when nobody waits any more:
// stopping would mean to begin again. body is nil unless it is there
// already.
func (e *entry) stream(j *job, body io.ReadCloser) {
	defer e.prefetchOn(j)
	first, end := e.grid.first[j.part], e.grid.first[j.part+1]
	locked := false
	if !j.alone {
		var err error
		if locked, err = e.state.tryLockPieces(first, end); !locked && err == nil {
			e.streamEnded(j.part)
			// Also those that were left to this stream meanwhile.
			e.requeue(first, j.from)
			e.requeue(j.from+1, end)
			e.follow(j.from)
			return
		}
	}
	if body == nil {
		e.copyPieces(j.part, first, end, e.cache.opts.grace, e.copied)
	}
	var next int
	var err error
	elsewhere := e.unkept && !e.anyFlying(first, end) // all that was asked for was found there
	if body != nil || e.undecided(j.part) || !e.state.hasAll(first, end) && !elsewhere {
		next, err = e.passThrough(j.ctx, j.part, body)
	}
	if locked {
		e.state.unlockPieces(first, end)
	}
	e.streamEnded(j.part)
	if err != nil {
		e.failed(j, next, end, err)
	}
	e.requeue(first, end) // nothing, unless a piece was dropped behind the stream
	e.checkComplete()
}

// anyFlying says that somebody still waits for one of pieces [from, to).
func (e *entry) anyFlying(from, to int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.flights {
		if i >= from && i < to {
			return true
		}
	}
	return false
}

// undecided says that only the stored bytes can tell whether the part is
// right: a frame that nothing has vouched for.
func (e *entry) undecided(part int) bool {
	return e.file.Parts[part].Encoding != layout.Raw && !e.partVerified(part)
}

func (e *entry) streaming(part int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.streams[part]
}

func (e *entry) streamEnded(part int) {
	e.mu.Lock()
	delete(e.streams, part)
	e.mu.Unlock()
}

// passThrough reads all of a blob, keeps its pieces and compares its
// digest at the end. It returns the first piece that was not reached.
func (e *entry) passThrough(ctx context.Context, part int, body io.ReadCloser) (next int, err error) {
	p := &e.file.Parts[part]
	r := e.stored(part, 0, p.StoredSize)
	r.Stream = true
	next = e.grid.first[part]
	weight, err := e.reserve(ctx, e.grid.size[part])
	if err != nil {
		return next, err
	}
	defer e.cache.buffers.Release(weight)
	if body == nil {
		if body, _, err = e.link.Open(ctx, r, nil); err != nil {
			return next, err
		}
	}
	whole := e.link.NewReader(ctx, r, transport.ReaderOptions{Body: body, Leave: true, Retried: e.cache.counts.retried})
	defer whole.Close()

	// Where each piece has a digest, the whole blob's says nothing more.
	hash := newSideHash(!r.Checked)
	defer hash.close()
	stored := &io.LimitedReader{R: hash.tee(whole), N: p.StoredSize}
	payload := io.Reader(stored)
	if p.Encoding != layout.Raw {
		frame, err := e.cache.openFrame(ctx, stored, p.Length)
		if errors.Is(err, zstdframe.ErrFrame) {
			return next, e.drop(part, whole.Body(), fmt.Sprintf("frame (%v)", err))
		}
		if err != nil {
			return next, err
		}
		defer frame.Close()
		payload = frame
	}
	var late sync.WaitGroup
	var pieces hashed
	if next, err = e.fill(part, payload, &late, &pieces); err != nil {
		if errors.Is(err, zstdframe.ErrFrame) {
			return e.grid.first[part], e.drop(part, whole.Body(), fmt.Sprintf("frame (%v)", err))
		}
		e.blame(p, whole.Body(), err)
		return next, err
	}
	if p.Encoding != layout.Raw {
		if n, err := payload.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			return e.grid.first[part], e.drop(part, whole.Body(), "frame holds more than it must")
		}
	}
	if _, err := io.Copy(io.Discard, stored); err != nil {
		return next, transport.NoEOF(err)
	}
	if stored.N > 0 {
		return next, io.ErrUnexpectedEOF
	}
	if sum, ok := hash.digest(); ok && sum != p.Digest {
		return e.grid.first[part], e.drop(part, whole.Body(), "whole")
	}
	late.Wait()
	e.vouch(part, &pieces)
	return next, nil
}

// openFrame decodes a frame as a stream. Its window counts among those of
// the process until it is closed.
func (c *Cache) openFrame(ctx context.Context, stored io.Reader, length int64) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(stored, 64<<10)
	head, err := in.Peek(zstdframe.HeaderSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	window := zstdframe.Window(head)
	if err := c.windows.Acquire(ctx, window); err != nil {
		return nil, err
	}
	frame, err := zstdframe.NewReaderWindow(in, length, window)
	if err != nil {
		c.windows.Release(window)
		return nil, err
	}
	return &windowed{frame, window, sync.OnceFunc(func() { c.windows.Release(window) })}, nil
}

// windowed gives its window back when it is closed.
type windowed struct {
	io.ReadCloser
	size int64
	back func()
}

const largeWindow = 32 << 20

// closed is a reader that was closed.
type closed struct{}

func (closed) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (closed) Close() error             { return nil }

func (w *windowed) Close() error {
	err := w.ReadCloser.Close()
	w.ReadCloser = closed{}
	if w.size >= largeWindow {
		runtime.GC() // the next one shall find the memory of this one, not take as much again
	}
	w.back()
	return err
}

// fill stores the pieces of a part as they come out of payload. Pieces
// that are there already are read over.
func (e *entry) fill(part int, payload io.Reader, late *sync.WaitGroup, pieces *hashed) (next int, err error) {
	buf := getBuffer(e.grid.size[part])
	defer putBuffer(buf)
	for next = e.grid.first[part]; next < e.grid.first[part+1]; next++ {
		_, n := e.grid.extent(next)
		if _, err := io.ReadFull(payload, buf[:n]); err != nil {
			return next, transport.NoEOF(err)
		}
		pieces.add(buf[:n])
		if e.keptAs(next, buf[:n]) {
			e.land(next, nil)
			continue
		}
		verified, err := e.checkPiece(next, buf[:n])
		if err != nil {
			return next, err
		}
		e.arrived(next, buf[:n], verified, byStream, late)
		if !verified && !e.link.Proven() && !e.state.has(next) {
			pieces.inMemory(next, buf[:n])
		}
	}
	return next, nil
}

// vouch marks those pieces of a part as checked that are what was hashed:
// another process may have put other bytes in the place of some meanwhile.
// Of those that were in memory it is noted what they are.
func (e *entry) vouch(part int, pieces *hashed) {
	for i, sum := range pieces.sums {
		e.state.setVerifiedAs(e.grid.first[part]+i, sum)
	}
	if len(pieces.unkept) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.vouched == nil {
		e.vouched = map[int][sha256.Size]byte{}
	}
	maps.Copy(e.vouched, pieces.unkept)
}

// keptAs says that piece i is present with this payload. The digest of the
// stream will vouch for what the stream brings, and for nothing that came
// before it from elsewhere.
func (e *entry) keptAs(i int, payload []byte) bool {
	return e.state.has(i) && e.state.word(i)&wordSum == xxhash.Sum64(payload)&wordSum
}
