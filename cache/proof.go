package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// ReadWhole reports whether bytes of the file are handed out only when all of
// the blob that they are in has come and was hashed.
func ReadWhole(f *layout.File, src Source) bool {
	return !transport.Proven(src) && !disk.NewGrid(f).AllChecked()
}

// keyOf returns the key of the cached form of a file from a source. If each piece
// is checked by itself, all sources share one.
func keyOf(f *layout.File, g *disk.Grid, src Source) string {
	key := f.Key()
	o, ok := src.(Origin)
	if !ok || g.AllChecked() {
		return key
	}
	sum := sha256.Sum256([]byte("epochfs origin 1\n" + key + "\n" + o.Origin()))
	return hex.EncodeToString(sum[:])
}

// proofWindow is how much of a part is fetched at a time to be hashed, and
// proofLeast how much if it has to be held in memory.
const (
	proofWindow = 32 << 20
	proofLeast  = 4 << 20
)

// proofs are the parts of a file that are being compared with their digests for
// waiting readers.
type proofs struct {
	entry *entry

	mu     sync.Mutex // never held over I/O
	byPart map[int]*proof
}

func (ps *proofs) init(e *entry) { ps.entry, ps.byPart = e, map[int]*proof{} }

// proof is the comparison of one part with its digest, for all waiting readers.
type proof struct {
	done    chan struct{}
	err     error // why it could not be compared; read only after done
	waiters int   // under proofs.mu; when all have left, it ends
	cancel  context.CancelFunc
}

// prove blocks until all of payload [from, to) was compared with a digest, if
// the source proves nothing.
func (ps *proofs) prove(ctx context.Context, from, to int64) error {
	e := ps.entry
	if e.link.Proven() {
		return nil
	}
	ctx, cancel := e.cache.readTimeout(ctx)
	defer cancel()
	for i, end := e.grid.In(from, to); i < end; {
		if ps.compared(i) {
			i++
		} else if err := ps.compare(ctx, e.grid.Part(i)); err != nil {
			return err
		}
	}
	return nil
}

// compared reports whether piece i may be handed out as it is on disk, whatever
// source sent it, or is missing and will be compared when it comes.
func (ps *proofs) compared(i int) bool {
	e := ps.entry
	if e.grid.Checked(e.grid.Part(i)) || e.state.Verified(i) {
		return true
	}
	_, ok := e.held.Vouched(i)
	return ok && !e.state.Has(i)
}

// proved reports whether payload [from, to) may be handed out: what is on disk
// of it, and what is in held.
func (ps *proofs) proved(from, to int64, held overlay.Pieces) bool {
	e := ps.entry
	if e.link.Proven() {
		return true
	}
	for i, end := e.grid.In(from, to); i < end; i++ {
		payload, inMemory := held[i]
		switch {
		case e.grid.Checked(e.grid.Part(i)):
		case !inMemory:
			if !e.state.Verified(i) {
				return false
			}
		default:
			if want, ok := e.held.Vouched(i); !ok || want != sha256.Sum256(payload) {
				e.held.Drop(i) // it came before that was known
				return false
			}
		}
	}
	return true
}

// compare blocks until a part was compared with its digest, and fetches its
// missing pieces for that. When it returns nil, the part is verified, or was
// wrong and is gone.
func (ps *proofs) compare(ctx context.Context, part int) error {
	ps.mu.Lock()
	p := ps.byPart[part]
	if p == nil {
		if !ps.entry.flights.use() {
			ps.mu.Unlock()
			return errClosed
		}
		p = ps.beginLocked(part)
	}
	p.waiters++
	ps.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	ps.mu.Lock()
	if p.waiters--; p.waiters == 0 {
		p.cancel()
		ps.endLocked(part, p) // the next reader begins again
	}
	ps.mu.Unlock()
	return ps.entry.flights.ended(ctx, nil)
}

// beginLocked begins the comparison of a part, which is a user of the entry.
func (ps *proofs) beginLocked(part int) *proof {
	ctx, cancel := context.WithCancel(ps.entry.ctx)
	p := &proof{done: make(chan struct{}), cancel: cancel}
	ps.byPart[part] = p
	go func() {
		defer ps.entry.flights.unuse()
		defer cancel()
		p.err = ps.comparePart(ctx, part)
		ps.mu.Lock()
		ps.endLocked(part, p)
		ps.mu.Unlock()
		close(p.done)
	}()
	return p
}

func (ps *proofs) endLocked(part int, p *proof) {
	if ps.byPart[part] == p {
		delete(ps.byPart, part)
	}
}

// comparePart hashes a part, piece by piece, from disk or, if that does not take
// a piece or give it back, from memory.
func (ps *proofs) comparePart(ctx context.Context, part int) error {
	e := ps.entry
	first, end := e.grid.Of(part)
	whole := sha256.New()
	var pieces hashed
	drops := e.disk.Drops()
	for i, size := first, int64(proofLeast); i < end; {
		to := min(i+int(max(1, size/e.grid.Size[part])), end)
		e.flights.queueMissing(ahead, to, min(2*to-i, end), 0)
		held, err := e.obtain(ctx, i, to)
		if err == nil && e.file.Parts[part].Encoding == layout.Raw {
			err = ps.hashPieces(ctx, whole, i, to, held, &pieces)
		}
		if err != nil {
			return err
		}
		if i, size = to, min(2*size, proofWindow); len(held) > 0 {
			size = proofLeast
		}
	}
	if e.file.Parts[part].Encoding != layout.Raw {
		return ps.awaitStream(ctx, part)
	}
	if digests.OfHash(whole) != e.file.Parts[part].Digest {
		e.refute(part, &pieces, drops)
		return nil
	}
	e.vouch(part, &pieces)
	return nil
}

// hashPieces writes pieces [from, to) to whole, and notes what they were.
func (ps *proofs) hashPieces(ctx context.Context, whole io.Writer, from, to int, held overlay.Pieces, pieces *hashed) error {
	e := ps.entry
	buf := buffers.Get(e.grid.Size[e.grid.Part(from)])
	defer buffers.Put(buf)
	for i := from; i < to; i++ {
		payload, inMemory := held[i]
		if !inMemory {
			_, n := e.grid.Extent(i)
			var err error
			if payload, inMemory, err = ps.given(ctx, i, buf[:n]); err != nil {
				return err
			}
		}
		if inMemory {
			pieces.inMemory(i, payload)
		}
		pieces.add(payload)
		_, _ = whole.Write(payload) // a hash takes everything
	}
	return nil
}

// given returns the payload of piece i, in buf. What the disk does not give back
// is fetched again, and in memory.
func (ps *proofs) given(ctx context.Context, i int, buf []byte) (payload []byte, inMemory bool, err error) {
	e := ps.entry
	for range mostLosses {
		if err = e.disk.Load(i, buf); err == nil {
			return buf, false, nil
		}
		if errors.Is(err, fs.ErrClosed) {
			break
		}
		e.lose([]int{i}, err)
		held, err := e.obtain(ctx, i, i+1)
		if err != nil {
			return nil, false, err
		}
		if data, ok := held[i]; ok {
			return data, true, nil
		}
	}
	return nil, false, transport.NoEOF(err)
}

// awaitStream blocks until the stream that brings a frame has ended: its
// digest is over stored bytes, which nobody else sees.
func (ps *proofs) awaitStream(ctx context.Context, part int) error {
	e := ps.entry
	for more := true; more; more = e.flights.streaming(part) {
		select {
		case <-time.After(checkPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.forgetUnseen(part)
	return nil
}

// Settle blocks until those parts of the file that are all there have been
// compared with their digests. Its error means that bytes which were read were
// wrong.
func (f *File) Settle(ctx context.Context) error {
	e := f.entry
	for part := range e.file.Parts {
		for {
			if e.verdicts.struck(part) {
				return e.wrong(part, "whole")
			}
			if e.disk.PartVerified(part) || !e.state.HasAll(e.grid.Of(part)) {
				break
			}
			if err := e.proofs.compare(ctx, part); err != nil {
				return err
			}
		}
	}
	return nil
}
