package cache

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Filler is the cached form of a file for a caller that fetches all of it
// itself, in order. Offsets are in a part's payload. A stretch that is kept or
// loaded begins at a multiple of the part's grain and ends at one, or
// at the part's end. Filler is safe for concurrent use, on different
// stretches.
type Filler struct {
	entry *entry

	mu   sync.Mutex
	sums map[int][]uint64 // by part without digests of pieces: checksums of what passed, by piece
}

// Filler returns the Filler of f, which must stay open meanwhile.
func (f *File) Filler() *Filler { return &Filler{entry: f.entry, sums: map[int][]uint64{}} }

// Part returns the payload of a part if it is complete and verified, else nil.
func (k *Filler) Part(part int) io.Reader {
	e := k.entry
	if e.state.Unsafe() || !e.disk.PartVerified(part) {
		return nil
	}
	p := &e.file.Parts[part]
	return io.NewSectionReader(payloadAt{e}, p.Offset, p.Length)
}

// payloadAt reads a file's payload that is all there.
type payloadAt struct{ entry *entry }

// ReadAt never reports the payload's end: its callers know it.
func (r payloadAt) ReadAt(p []byte, off int64) (int, error) {
	if n := r.entry.file.PayloadSize() - off; n < int64(len(p)) {
		return 0, io.ErrUnexpectedEOF
	}
	if err := r.entry.disk.LoadPayload(off, p); err != nil {
		r.entry.loseWithin(off, int64(len(p)), err)
		return 0, err
	}
	return len(p), nil
}

// Keeps reports that what is fetched is kept.
func (k *Filler) Keeps() bool { return true }

// Grain returns how many bytes of a part are kept as one.
func (k *Filler) Grain(part int) int64 { return k.entry.grid.Size[part] }

// pieces returns the pieces of a stretch.
func (k *Filler) pieces(part int, off, n int64) (from, to int) {
	g := k.entry.grid
	if k.entry.file.Index != nil {
		return g.At(off), g.At(off+n-1) + 1
	}
	from = g.First[part] + int(off/g.Size[part])
	return from, min(from+int((n+g.Size[part]-1)/g.Size[part]), g.First[part+1])
}

// Here reports whether a stretch need not be fetched.
func (k *Filler) Here(part int, off, n int64) bool {
	for i, to := k.pieces(part, off, n); i < to; i++ {
		if !k.usable(part, i) {
			return false
		}
	}
	return true
}

// usable reports whether piece i is there and was checked, or will be, with all
// of its part.
func (k *Filler) usable(part, i int) bool {
	e := k.entry
	return !e.state.Unsafe() && (e.state.Verified(i) || e.state.Has(i) && k.hashedOnRead(part))
}

// hashedOnRead reports whether a part's stored bytes are its payload, with no
// digest for its pieces.
func (k *Filler) hashedOnRead(part int) bool {
	e := k.entry
	return e.file.Parts[part].Encoding == layout.Raw && !e.grid.Checked(part)
}

// Claim is called before a stretch is fetched. If another process fetches it,
// Claim blocks until that has ended; if another file has it, Claim copies it. So
// Load may succeed after it. release ends the claim. When ctx ends, Claim
// returns at once, even if the disk does not answer.
func (k *Filler) Claim(ctx context.Context, part int, off, n int64) (release func(), err error) {
	from, to := k.pieces(part, off, n)
	if from == to || k.Here(part, off, n) {
		return func() {}, nil
	}
	return k.within(ctx, func() (func(), error) { return k.claim(ctx, part, from, to) })
}

// within returns what claim returns, or an error when ctx ends before. Then
// what is claimed after that is released.
func (k *Filler) within(ctx context.Context, claim func() (release func(), err error)) (release func(), err error) {
	e := k.entry
	if !e.flights.use() {
		return nil, errClosed
	}
	type result struct {
		release func()
		err     error
	}
	claimed := make(chan result)
	go func() {
		defer e.flights.unuse()
		release, err := claim()
		select {
		case claimed <- result{release, err}:
		case <-ctx.Done():
			if err == nil {
				release()
			}
		}
	}()
	select {
	case r := <-claimed:
		return r.release, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// claim is Claim of pieces [from, to), for as long as the disk takes.
func (k *Filler) claim(ctx context.Context, part, from, to int) (release func(), err error) {
	e := k.entry
	turn := func() {}
	if e.grid.Whole(part) {
		if turn = e.cache.fetching.begin(ctx, e.file.Parts[part].Digest); turn == nil {
			return nil, context.Cause(ctx)
		}
	}
	locked, err := k.lock(ctx, from, to)
	if err != nil {
		turn()
		return nil, err
	}
	e.recheck(from, to)
	drops := e.disk.Drops()
	e.peers.copyPieces(part, from, to, patient, func(i int, payload []byte, verified bool, from *disk.Clone) {
		if e.storeWaiting(ctx, &disk.Incoming{Piece: i, Payload: payload, Verified: verified, By: disk.ByCopy, Drops: drops, Clone: from}) == nil {
			e.flights.land(i, nil)
		}
	})
	return func() {
		if locked {
			e.state.UnlockPieces(from, to)
		}
		turn()
	}, nil
}

// patient is longer than anything takes.
const patient = time.Hour

// lockTries bounds how often others are waited for that give up pieces which
// they have not brought.
const lockTries = 3

// lock claims pieces among processes, or blocks until others have brought them.
// A process that stands still is not waited for.
func (k *Filler) lock(ctx context.Context, from, to int) (locked bool, err error) {
	e := k.entry
	for range lockTries {
		if locked, err = e.state.TryLockPieces(from, to); locked || err != nil {
			return locked, nil // without locks the fetch goes on: the bytes are the same
		}
		for i := from; i < to; i++ {
			came, err := e.comes(ctx, i)
			if err != nil {
				return false, err
			}
			if !came && e.state.HeldElsewhere(i) {
				return false, nil
			}
		}
	}
	return false, nil
}

// Own claims all of a part, without waiting. ok is false if somebody else has
// any of it.
func (k *Filler) Own(part int) (release func(), ok bool) {
	e := k.entry
	from, to := e.grid.Of(part)
	if ok, err := e.state.TryLockPieces(from, to); from == to || !ok || err != nil {
		return nil, false
	}
	return func() { e.state.UnlockPieces(from, to) }, true
}

// Load fills p and reports true, if all of that stretch is there. If no digest
// has vouched for it yet, the caller hashes the part.
func (k *Filler) Load(part int, off int64, p []byte) bool {
	e := k.entry
	from, to := k.pieces(part, off, int64(len(p)))
	if !k.Here(part, off, int64(len(p))) || e.disk.LoadPayload(e.file.Parts[part].Offset+off, p) != nil {
		return false
	}
	for i := from; i < to; i++ {
		_, n := e.grid.Extent(i)
		if !e.state.Verified(i) {
			sum := disk.Sum(p[:n])
			if !e.state.Word(i).HasSum(sum) {
				e.compareKept(i)
				return false
			}
			k.passed(part, i, sum)
		}
		p = p[n:]
	}
	return true
}

// Keep keeps a stretch. verified is true if a digest of the artifact vouches
// for it.
func (k *Filler) Keep(part int, off int64, p []byte, verified bool) {
	e := k.entry
	drops := e.disk.Drops()
	for i, to := k.pieces(part, off, int64(len(p))); i < to; i++ {
		_, n := e.grid.Extent(i)
		piece, checked := p[:n], verified
		p = p[n:]
		if !checked {
			var err error
			if checked, err = e.checkPiece(i, piece); err != nil {
				return // the part will not have its digest
			}
		}
		if !checked {
			sum := disk.Sum(piece)
			k.passed(part, i, sum)
			if e.state.HasSum(i, sum) {
				continue
			}
		}
		if e.storeWaiting(e.ctx, &disk.Incoming{Piece: i, Payload: piece, Verified: checked, By: disk.ByFetch, Drops: drops}) != nil {
			return // it was logged
		}
	}
	if e.grid.Whole(part) {
		e.cache.index.note(e, part)
	}
}

// passed notes what will have been hashed when all of a part has passed.
func (k *Filler) passed(part, piece int, sum uint64) {
	first, end := k.entry.grid.Of(part)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sums[part] == nil {
		k.sums[part] = make([]uint64, end-first)
	}
	k.sums[part][piece-first] = sum
}

// Vouch is called when all of a part has passed and had its digest: what
// is kept of it as it passed is verified.
func (k *Filler) Vouch(part int) {
	s := k.entry.state
	first := k.entry.grid.First[part]
	for i, sum := range k.take(part) {
		s.SetVerified(first+i, sum)
	}
}

// Drop is called when it did not have its digest: nothing of the part is
// believed.
func (k *Filler) Drop(part int) {
	k.take(part)
	_ = k.entry.drop(part, nil, "whole") // the caller has an error of its own
}

// take returns what passed has noted of a part, and forgets it.
func (k *Filler) take(part int) []uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	sums := k.sums[part]
	delete(k.sums, part)
	return sums
}
