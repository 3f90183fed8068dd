package cache

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// adopt goes on with a body that turned out to be a whole blob, as a stream
// that was begun for it. The flights of the job wait for it to pass.
func (j *job) adopt(body io.ReadCloser) {
	e := j.entry
	s := &job{entry: e, part: j.part, priority: j.priority, stream: true, alone: true, ctx: j.ctx, cancel: j.cancel}
	s.from, s.to = e.grid.Of(j.part)
	go func() {
		defer e.flights.unuse()
		defer s.cancel(nil)
		s.passBlob(body)
	}()
}

// passBlob fetches a part from its first byte to its last and fills its pieces
// as it passes them. It goes on when nobody waits any more, because a stream that is
// stopped has to begin again. body is nil unless it is there already.
func (j *job) passBlob(body io.ReadCloser) {
	e := j.entry
	defer j.prefetchOn()
	first, end := e.grid.Of(j.part)
	locked := false
	if !j.alone {
		var err error
		if locked, err = e.state.TryLockPieces(first, end); !locked && err == nil {
			e.flights.streamEnded(j.part)
			// Also those that were left to this stream meanwhile.
			e.flights.requeue(first, j.from)
			e.flights.requeue(j.from+1, end)
			j.follow(j.from)
			return
		}
	}
	if body == nil {
		e.peers.copyPieces(j.part, first, end, e.cache.opts.grace, j.copied)
	}
	var next int
	var err error
	foundElsewhere := e.unkept() && !e.flights.flying(first, end) // all that was asked for
	if body != nil || j.undecided() || !e.state.HasAll(first, end) && !foundElsewhere {
		next, err = j.readBlob(body)
	}
	if locked {
		e.state.UnlockPieces(first, end)
	}
	e.flights.streamEnded(j.part)
	if err != nil {
		j.failed(next, end, err)
	}
	e.flights.requeue(first, end) // nothing, unless a piece was dropped behind the stream
	e.checkComplete()
}

// undecided reports whether only the stored bytes can show if the job's part is
// right: a frame that nothing has vouched for.
func (j *job) undecided() bool {
	e, part := j.entry, j.part
	return e.file.Parts[part].Encoding != layout.Raw && !e.disk.PartVerified(part)
}

// readBlob reads all of a blob, keeps its pieces and compares its digest at the
// end. It returns the first piece that was not reached.
func (j *job) readBlob(body io.ReadCloser) (next int, err error) {
	e, part := j.entry, j.part
	p := &e.file.Parts[part]
	r := j.blobRange(0, p.StoredSize)
	r.Stream = true
	first := e.grid.First[part]
	release, err := j.memory(e.grid.Size[part])
	if err != nil {
		return first, err
	}
	defer release()
	if body == nil {
		if body, _, err = e.link.Open(j.ctx, r, nil); err != nil {
			return first, err
		}
	}
	whole := e.link.NewReader(j.ctx, r, transport.ReaderOptions{Body: body, Leave: true, Retried: e.cache.counts.retried})
	defer whole.Close()

	// If each piece has a digest, that of the whole blob adds nothing.
	hash := newSideHash(!r.Checked)
	defer hash.close()
	stored := &io.LimitedReader{R: hash.tee(whole), N: p.StoredSize}
	payload := io.Reader(stored)
	if p.Encoding != layout.Raw {
		frame, err := e.cache.windows.open(j.ctx, stored, p.Length)
		if errors.Is(err, zstdframe.ErrFrame) {
			return first, e.drop(part, whole.Body(), fmt.Sprintf("frame (%v)", err))
		}
		if err != nil {
			return first, err
		}
		defer frame.Close()
		payload = frame
	}
	var later sync.WaitGroup
	var pieces hashed
	if next, err = j.fill(payload, &later, &pieces); err != nil {
		if errors.Is(err, zstdframe.ErrFrame) {
			return first, e.drop(part, whole.Body(), fmt.Sprintf("frame (%v)", err))
		}
		e.blame(part, whole.Body(), err)
		return next, err
	}
	if p.Encoding != layout.Raw {
		if n, err := payload.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			return first, e.drop(part, whole.Body(), "frame holds more than it must")
		}
	}
	if _, err := io.Copy(io.Discard, stored); err != nil {
		return next, transport.NoEOF(err)
	}
	if stored.N > 0 {
		return next, io.ErrUnexpectedEOF
	}
	if sum, ok := hash.digest(); ok && sum != p.Digest {
		return first, e.drop(part, whole.Body(), "whole")
	}
	later.Wait()
	e.vouch(part, &pieces)
	return next, nil
}

// fill keeps the pieces of a part as they come out of payload. Pieces that are
// there already are read over.
func (j *job) fill(payload io.Reader, later *sync.WaitGroup, pieces *hashed) (next int, err error) {
	e := j.entry
	buf := buffers.Get(e.grid.Size[j.part])
	defer buffers.Put(buf)
	next, end := e.grid.Of(j.part)
	for ; next < end; next++ {
		_, n := e.grid.Extent(next)
		if _, err := io.ReadFull(payload, buf[:n]); err != nil {
			return next, transport.NoEOF(err)
		}
		pieces.add(buf[:n])
		// The digest of the stream vouches for what the stream brings, and for
		// nothing that came before it from elsewhere.
		if e.state.HasSum(next, disk.Sum(buf[:n])) {
			e.flights.land(next, nil)
			continue
		}
		verified, err := e.checkPiece(next, buf[:n])
		if err != nil {
			return next, err
		}
		e.keep(&disk.Incoming{Piece: next, Payload: buf[:n], Verified: verified, By: disk.ByStream, Read: j.forReader()}, later)
		if !verified && !e.link.Proven() && !e.state.Has(next) {
			pieces.inMemory(next, buf[:n])
		}
	}
	return next, nil
}
