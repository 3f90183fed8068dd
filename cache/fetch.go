package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// run does a job that the queue has started, in a goroutine of its own. Every
// flight of the job has landed or is queued again when it returns.
func (j *job) run() {
	if j.stream {
		j.passBlob(nil)
	} else {
		j.fetch()
	}
	if !j.adopted {
		j.cancel(nil)
	}
	j.entry.flights.unuse()
}

// fetch fetches the job's pieces.
func (j *job) fetch() {
	e := j.entry
	defer j.prefetchOn()
	from, to, claimed := j.claim()
	if from == to {
		return
	}
	var err error
	switch {
	case e.file.Index != nil:
		from, err = j.fetchGranules(from, to)
	case e.grid.Whole(j.part):
		err = j.fetchOnce(from)
	default:
		from, err = j.fetchPieces(from, to)
	}
	e.state.UnlockPieces(j.from, claimed)
	if err != nil && err != errPaused {
		j.failed(from, to, err)
	} else {
		e.flights.requeue(from, to) // the pieces that were not fetched
	}
	e.checkComplete()
}

// claim locks the job's pieces among processes, copies what other cached files
// have, and returns the run of pieces that is still missing, which is empty if
// nothing is left to do. The lock reaches up to claimed. The rest is queued
// again, or followed while another process fetches it.
func (j *job) claim() (from, to, claimed int) {
	e := j.entry
	n := j.to - j.from
	if !j.alone {
		for ; n > 0; n /= 2 {
			if got, err := e.state.TryLockPieces(j.from, j.from+n); got || err != nil {
				break // without locks the fetch goes on: the bytes are the same
			}
		}
	}
	if n == 0 {
		e.flights.requeue(j.from+1, j.to)
		j.follow(j.from)
		return 0, 0, 0
	}
	claimed = j.from + n
	e.flights.requeue(claimed, j.to)
	e.peers.copyPieces(j.part, j.from, claimed, e.cache.opts.grace, j.copied)
	from = j.from
	for from < claimed && e.flights.landed(from) {
		from++
	}
	to = from
	for to < claimed && !e.flights.landed(to) {
		to++
	}
	e.flights.requeue(to, claimed)
	if from == to {
		e.state.UnlockPieces(j.from, claimed)
		e.checkComplete()
	}
	return from, to, claimed
}

// fetchOnce fetches a part that is one piece, unless the same bytes are just
// being fetched as another part.
func (j *job) fetchOnce(piece int) error {
	e := j.entry
	done := e.cache.fetching.begin(j.ctx, e.file.Parts[j.part].Digest)
	if done == nil {
		return context.Cause(j.ctx)
	}
	defer done()
	e.peers.copyPieces(j.part, piece, piece+1, e.cache.opts.grace, j.copied)
	if e.flights.landed(piece) {
		return nil
	}
	err := j.fetchWhole(piece)
	if err == nil {
		e.cache.index.note(e, j.part)
	}
	return err
}

// fetchWhole fetches a part that is one piece and checks it before a byte of
// it is used.
func (j *job) fetchWhole(piece int) (err error) {
	e := j.entry
	p := &e.file.Parts[j.part]
	weight := p.StoredSize
	if p.Encoding != layout.Raw {
		weight += p.Length
	}
	release, err := j.memory(weight)
	if err != nil {
		return err
	}
	defer release()
	if j.priority >= replayed && e.cache.quota.Measuring() {
		return errPaused // it waited for that memory
	}

	stored := buffers.Get(p.StoredSize)
	defer buffers.Put(stored)
	body, _, err := e.link.Open(j.ctx, j.blobRange(0, p.StoredSize), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	defer func() { e.blame(j.part, body, err) }()
	if _, err := io.ReadFull(body, stored); err != nil {
		return transport.NoEOF(err)
	}
	crashpoint.Reach("part fetched")
	if digests.Format(sha256.Sum256(stored)) != p.Digest {
		return e.wrong(j.part, "whole")
	}
	payload := stored
	if p.Encoding != layout.Raw {
		decoded := buffers.Get(p.Length)
		defer buffers.Put(decoded)
		if payload, err = zstdframe.Decode(decoded[:0], stored, p.Length); err != nil {
			return &contentError{error: errors.Join(e.wrong(j.part, "frame"), err)}
		}
		crashpoint.Reach("part decoded")
	}
	e.keep(&disk.Incoming{Piece: piece, Payload: payload, Verified: true, By: disk.ByFetch, Read: j.forReader()}, nil)
	return nil
}

// fetchPieces fetches raw pieces [from, to) of a part with one request, each
// usable as soon as it is there. It returns the first piece that was not
// fetched; that is no error if the registry sent the whole blob and a stream
// goes on with it.
func (j *job) fetchPieces(from, to int) (int, error) {
	e := j.entry
	p := &e.file.Parts[j.part]
	size := e.grid.Size[j.part]
	release, err := j.memory(size)
	if err != nil {
		return from, err
	}
	defer release()

	first, _ := e.grid.Extent(from)
	last, n := e.grid.Extent(to - 1)
	length := last + n - first
	body, whole, err := e.link.Open(j.ctx, j.blobRange(first-p.Offset, length), func() { j.adopted = e.flights.beginStream(j.part) })
	switch {
	case err != nil:
		return from, err
	case j.adopted:
		j.adopt(body)
		return from, nil
	case whole && length < p.StoredSize:
		if body != nil {
			_ = body.Close() // it is being streamed already
		}
		return from, nil
	}
	defer body.Close()
	buf := buffers.Get(size)
	defer buffers.Put(buf)
	for ; from < to; from++ {
		_, n := e.grid.Extent(from)
		if _, err := io.ReadFull(body, buf[:n]); err != nil {
			return from, transport.NoEOF(err)
		}
		crashpoint.Reach("piece fetched")
		verified, err := e.checkPiece(from, buf[:n])
		if err != nil {
			e.blame(j.part, body, err)
			return from, err
		}
		e.keep(&disk.Incoming{Piece: from, Payload: buf[:n], Verified: verified, By: disk.ByFetch, Read: j.forReader()}, nil)
	}
	return to, nil
}
