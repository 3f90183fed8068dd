package cache

import (
	"context"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Filler keeps what somebody else fetches of a file, and gives him what is
// there: who wants all of it in order knows better what to ask for next
// than readers do who come as they like. Offsets are in a part's payload;
// what is kept or looked for begins at a multiple of the part's grain and
// ends at one, or at the part's end. It is safe for concurrent use, on
// different stretches.
type Filler struct {
	entry *entry

	mu   sync.Mutex
	sums map[int][]uint64 // by part without digests of pieces: checksums of what passed, by piece
}

// Filler returns what fills f, which must stay open meanwhile.
func (f *File) Filler() *Filler { return &Filler{entry: f.entry, sums: map[int][]uint64{}} }

// Part returns the payload of a part when all of it is there and was
// verified, else nil.
func (k *Filler) Part(part int) io.Reader { return k.entry.verifiedPart(part) }

// Grain is how many bytes of a part are kept as one.
func (k *Filler) Grain(part int) int64 { return k.entry.grid.size[part] }

// pieces returns the pieces of a stretch.
func (k *Filler) pieces(part int, off, n int64) (from, to int) {
	g := k.entry.grid
	if k.entry.file.Index != nil {
		return g.at(off), g.at(off+n-1) + 1
	}
	from = g.first[part] + int(off/g.size[part])
	return from, min(from+int((n+g.size[part]-1)/g.size[part]), g.first[part+1])
}

// Here says that a stretch need not be fetched.
func (k *Filler) Here(part int, off, n int64) bool {
	for i, to := k.pieces(part, off, n); i < to; i++ {
		if !k.usable(part, i) {
			return false
		}
	}
	return true
}

// usable says that piece i is there and was checked, or will be, with all
// of its part.
func (k *Filler) usable(part, i int) bool {
	e := k.entry
	return !e.state.unsafe() && (e.state.verified(i) || e.state.has(i) && e.hashedOnRead(part))
}

// hashedOnRead says that a part's stored bytes are its payload, with no
// digest for its pieces.
func (e *entry) hashedOnRead(part int) bool {
	return e.file.Parts[part].Encoding == layout.Raw && !e.grid.checked(part)
}

// Claim is called before a stretch is fetched. Where another process
// fetches it, it waits for that; where another file has it, that is copied.
// So Load may succeed after it. release ends the claim. When ctx ends, Claim
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
	if !e.use() {
		return nil, fs.ErrClosed
	}
	type result struct {
		release func()
		err     error
	}
	claimed := make(chan result)
	go func() {
		defer e.unuse()
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
	if e.grid.whole(part) {
		if turn = e.cache.alone(ctx, e, part); turn == nil {
			return nil, context.Cause(ctx)
		}
	}
	locked, err := k.lock(ctx, from, to)
	if err != nil {
		turn()
		return nil, err
	}
	for i := from; i < to; i++ {
		if e.state.suspect(i) {
			e.recheck(i)
		}
	}
	drops := e.drops.Load()
	e.copyPieces(part, from, to, patient, func(i int, payload []byte, verified bool, from *clone) {
		if e.storeWaiting(ctx, &incoming{piece: i, payload: payload, verified: verified, by: byCopy, drops: drops, from: from}) == nil {
			e.land(i, nil)
		}
	})
	return func() {
		if locked {
			e.state.unlockPieces(from, to)
		}
		turn()
	}, nil
}

// patient is longer than anything takes.
const patient = time.Hour

// lockTries bounds how often others are waited for who let go of pieces
// that they have not brought.
const lockTries = 3

// lock claims pieces among processes, or waits until others have brought
// them. Who stands still is not waited for.
func (k *Filler) lock(ctx context.Context, from, to int) (locked bool, err error) {
	e := k.entry
	for range lockTries {
		if locked, err = e.state.tryLockPieces(from, to); locked || err != nil {
			return locked, nil // without locks the fetch goes on: the bytes are the same
		}
		for i := from; i < to; i++ {
			came, err := e.comes(ctx, i)
			if err != nil {
				return false, err
			}
			if !came && e.state.heldElsewhere(i) {
				return false, nil
			}
		}
	}
	return false, nil
}

// Own claims all of a part, without waiting.
func (k *Filler) Own(part int) (release func(), ok bool) {
	e := k.entry
	from, to := e.grid.first[part], e.grid.first[part+1]
	if ok, err := e.state.tryLockPieces(from, to); from == to || !ok || err != nil {
		return nil, false
	}
	return func() { e.state.unlockPieces(from, to) }, true
}

// Load fills p, if all of that stretch is there. Where no digest has
// vouched for it yet, the caller hashes the part.
func (k *Filler) Load(part int, off int64, p []byte) bool {
	e := k.entry
	from, to := k.pieces(part, off, int64(len(p)))
	if !k.Here(part, off, int64(len(p))) || e.loadPayload(e.file.Parts[part].Offset+off, p) != nil {
		return false
	}
	for i := from; i < to; i++ {
		_, n := e.grid.extent(i)
		if !e.state.verified(i) {
			sum := xxhash.Sum64(p[:n])
			if e.state.word(i)&wordSum != sum&wordSum {
				e.compareKept(i)
				return false
			}
			k.passed(part, i, sum)
		}
		p = p[n:]
	}
	return true
}

// Keep keeps a stretch. verified says that a digest of the artifact
// vouches for it.
func (k *Filler) Keep(part int, off int64, p []byte, verified bool) {
	e := k.entry
	drops := e.drops.Load()
	for i, to := k.pieces(part, off, int64(len(p))); i < to; i++ {
		_, n := e.grid.extent(i)
		piece, checked := p[:n], verified
		p = p[n:]
		if !checked {
			var err error
			if checked, err = e.checkPiece(i, piece); err != nil {
				return // the part's digest will tell
			}
		}
		if !checked {
			k.passed(part, i, xxhash.Sum64(piece))
			if e.keptAs(i, piece) {
				continue
			}
		}
		if e.storeWaiting(e.ctx, &incoming{piece: i, payload: piece, verified: checked, by: byFetch, drops: drops}) != nil {
			return // it has said so
		}
	}
	if e.grid.whole(part) {
		e.cache.index.note(e, part)
	}
}

// passed notes what will have been hashed when all of a part has passed.
func (k *Filler) passed(part, piece int, sum uint64) {
	first, end := k.entry.grid.first[part], k.entry.grid.first[part+1]
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
	first := k.entry.grid.first[part]
	for i, sum := range k.take(part) {
		s.setVerifiedAs(first+i, sum)
	}
}

// Drop is called when it did not: nothing of the part is believed.
func (k *Filler) Drop(part int) {
	k.take(part)
	_ = k.entry.drop(part, nil, "whole") // the caller has an error of his own
}

func (k *Filler) take(part int) []uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	sums := k.sums[part]
	delete(k.sums, part)
	return sums
}
