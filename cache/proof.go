package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// ReadWhole says that bytes of the file are handed out only when all of
// the blob they are in has come and was hashed.
func ReadWhole(f *layout.File, src Source) bool {
	return !transport.Proven(src) && !newGrid(f).allChecked()
}

// keyOf names the cached form of a file from a source. Where each piece is
// checked by itself, all sources share one.
func keyOf(f *layout.File, g *grid, src Source) string {
	key := f.Key()
	o, ok := src.(Origin)
	if !ok || g.allChecked() {
		return key
	}
	sum := sha256.Sum256([]byte("epochfs origin 1\n" + key + "\n" + o.Origin()))
	return hex.EncodeToString(sum[:])
}

// proofWindow is how much of a part is had at a time to be hashed, and
// proofLeast how much where that has to be held in memory.
const (
	proofWindow = 32 << 20
	proofLeast  = 4 << 20
)

// hashed is what was hashed of a part, piece by piece. What lies on disk by
// the time that its digest is known may be something else.
type hashed struct {
	sums   []uint64                  // checksums of its pieces, in order
	unkept map[int][sha256.Size]byte // digests of those that were in memory
}

func (h *hashed) add(payload []byte) { h.sums = append(h.sums, xxhash.Sum64(payload)) }

func (h *hashed) inMemory(piece int, payload []byte) {
	if h.unkept == nil {
		h.unkept = map[int][sha256.Size]byte{}
	}
	h.unkept[piece] = sha256.Sum256(payload)
}

// prove waits, where the source proves nothing, until all of payload
// [from, to) was compared with a digest.
func (e *entry) prove(ctx context.Context, from, to int64) error {
	if e.link.Proven() {
		return nil
	}
	if t := e.cache.opts.ReadTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, ErrTimeout)
		defer cancel()
	}
	for i, end := e.grid.at(from), e.grid.at(to-1)+1; i < end; {
		if e.compared(i) {
			i++
		} else if err := e.compare(ctx, e.grid.part(i)); err != nil {
			return err
		}
	}
	return nil
}

// compared says that what is present of piece i may be handed out, whoever
// sent it, or that what is missing will be compared when it comes.
func (e *entry) compared(i int) bool {
	if e.grid.checked(e.grid.part(i)) || e.state.verified(i) {
		return true
	}
	_, ok := e.vouchedFor(i)
	return ok && !e.state.has(i)
}

// vouchedFor is the digest of a piece that was hashed with all of its part,
// and right, while it was in memory: when it is fetched again, it is
// compared with that.
func (e *entry) vouchedFor(i int) (want [sha256.Size]byte, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	want, ok = e.vouched[i]
	return want, ok
}

// proved says that payload [from, to) may be handed out: what is on disk of
// it, and what is in memory.
func (e *entry) proved(from, to int64, unkept map[int][]byte) bool {
	if e.link.Proven() {
		return true
	}
	for i, j := e.grid.at(from), e.grid.at(to-1)+1; i < j; i++ {
		payload, inMemory := unkept[i]
		switch {
		case e.grid.checked(e.grid.part(i)):
		case !inMemory:
			if !e.state.verified(i) {
				return false
			}
		default:
			if want, ok := e.vouchedFor(i); !ok || want != sha256.Sum256(payload) {
				e.cache.spare.drop(e, i, i+1) // it came before that was known
				return false
			}
		}
	}
	return true
}

// proof is the comparison of one part with its digest, for all who wait.
type proof struct {
	done    chan struct{}
	err     error // why it could not be compared; read only after done
	waiters int   // under entry.mu; when all have left, it ends
	cancel  context.CancelFunc
}

// compare has a part compared with its digest, and what is missing of it
// fetched for that. When it returns nil, the part is verified, or was wrong
// and is gone.
func (e *entry) compare(ctx context.Context, part int) error {
	e.mu.Lock()
	p := e.proofs[part]
	if p == nil {
		if e.closing {
			e.mu.Unlock()
			return fs.ErrClosed
		}
		p = e.beginProofLocked(part)
	}
	p.waiters++
	e.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	e.mu.Lock()
	if p.waiters--; p.waiters == 0 {
		p.cancel()
		e.endProofLocked(part, p) // who comes now begins anew
	}
	e.mu.Unlock()
	return e.ended(ctx, nil)
}

func (e *entry) beginProofLocked(part int) *proof {
	ctx, cancel := context.WithCancel(e.ctx)
	p := &proof{done: make(chan struct{}), cancel: cancel}
	e.proofs[part] = p
	e.jobs.Add(1)
	go func() {
		defer e.unuse()
		defer cancel()
		p.err = e.comparePart(ctx, part)
		e.mu.Lock()
		e.endProofLocked(part, p)
		e.mu.Unlock()
		close(p.done)
	}()
	return p
}

func (e *entry) endProofLocked(part int, p *proof) {
	if e.proofs[part] == p {
		delete(e.proofs, part)
	}
}

// comparePart goes through a part, in pieces that are on disk or, where it
// does not take them or give them back, in memory.
func (e *entry) comparePart(ctx context.Context, part int) error {
	first, end := e.grid.first[part], e.grid.first[part+1]
	whole := sha256.New()
	var pieces hashed
	drops := e.drops.Load()
	for i, size := first, int64(proofLeast); i < end; {
		to := min(i+int(max(1, size/e.grid.size[part])), end)
		e.queueMissing(ahead, to, min(2*to-i, end), 0)
		unkept, err := e.obtain(ctx, i, to)
		if err == nil && e.file.Parts[part].Encoding == layout.Raw {
			err = e.hashPieces(ctx, whole, i, to, unkept, &pieces)
		}
		if err != nil {
			return err
		}
		if i, size = to, min(2*size, proofWindow); len(unkept) > 0 {
			size = proofLeast
		}
	}
	if e.file.Parts[part].Encoding != layout.Raw {
		return e.awaitStream(ctx, part)
	}
	if "sha256:"+hex.EncodeToString(whole.Sum(nil)) != e.file.Parts[part].Digest {
		e.refute(part, &pieces, drops)
		return nil
	}
	e.vouch(part, &pieces)
	return nil
}

// hashPieces feeds pieces [from, to) to whole, and notes what they were.
func (e *entry) hashPieces(ctx context.Context, whole io.Writer, from, to int, unkept map[int][]byte, pieces *hashed) error {
	buf := getBuffer(e.grid.size[e.grid.part(from)])
	defer putBuffer(buf)
	for i := from; i < to; i++ {
		payload, inMemory := unkept[i]
		if !inMemory {
			_, n := e.grid.extent(i)
			var err error
			if payload, inMemory, err = e.given(ctx, i, buf[:n]); err != nil {
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

// given reads piece i into buf. What the disk does not give back is fetched
// again, and in memory.
func (e *entry) given(ctx context.Context, i int, buf []byte) (payload []byte, inMemory bool, err error) {
	for range mostLosses {
		if err = e.loadChecked(i, buf); err == nil {
			return buf, false, nil
		}
		if errors.Is(err, fs.ErrClosed) {
			break
		}
		e.lose([]int{i}, err)
		unkept, err := e.obtain(ctx, i, i+1)
		if err != nil {
			return nil, false, err
		}
		if data, ok := unkept[i]; ok {
			return data, true, nil
		}
	}
	return nil, false, transport.NoEOF(err)
}

// awaitStream waits for the end of the stream that brings a frame: its
// digest is over stored bytes, which nobody else sees.
func (e *entry) awaitStream(ctx context.Context, part int) error {
	for more := true; more; more = e.streaming(part) {
		select {
		case <-time.After(verifyPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	e.forgetUnseen(part)
	return nil
}

// Settle waits until those parts of the file that are all there have been
// compared with their digests. Its error says that bytes which were read
// were wrong.
func (f *File) Settle(ctx context.Context) error {
	e := f.entry
	for part := range e.file.Parts {
		for {
			e.mu.Lock()
			bad := e.strikes[part] > 0
			e.mu.Unlock()
			if bad {
				return e.wrong(part, "whole")
			}
			if e.partVerified(part) || !e.state.hasAll(e.grid.first[part], e.grid.first[part+1]) {
				break
			}
			if err := e.compare(ctx, part); err != nil {
				return err
			}
		}
	}
	return nil
}
