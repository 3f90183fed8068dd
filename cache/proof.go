package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Origin is a Source that tells who stands for the bytes that no digest
// vouches for before all of their blob is there.
type Origin interface {
	// Origin names it. Files with such bytes are kept apart by it: what one
	// has sent, and nobody has vouched for, is not shown as another's.
	Origin() string
	// Proven says that it has proved who it is. Of one that has not, such
	// bytes are not handed out before their blob is complete and hashed.
	Proven() bool
}

// proven says it of a source; of one that does not tell, too.
func proven(src Source) bool {
	o, ok := src.(Origin)
	return !ok || o.Proven()
}

// ReadWhole says that bytes of the file are handed out only when all of
// the blob they are in has come and was hashed.
func ReadWhole(f *layout.File, src Source) bool { return !proven(src) && !newGrid(f).allChecked() }

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

// errNoProof says that a blob which must be hashed before it is read
// cannot be kept until then.
var errNoProof = errors.New("bytes from a source that proves nothing must be hashed as a whole, and the cache has no room for that")

// prove waits, where the source proves nothing, until all of payload
// [from, to) is there and was compared with a digest.
func (e *entry) prove(ctx context.Context, from, to int64) error {
	if e.link.proven || e.proved(from, to) {
		return nil
	}
	if t := e.cache.opts.ReadTimeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, ErrTimeout)
		defer cancel()
	}
	for part := e.file.PartAt(from); part < len(e.file.Parts) && e.file.Parts[part].Offset < to; part++ {
		for !e.grid.checked(part) && !e.partVerified(part) {
			unkept, err := e.demand(ctx, e.grid.first[part], e.grid.first[part+1])
			if err == nil && len(unkept) > 0 {
				err = errNoProof
			}
			if err == nil {
				err = e.compare(ctx, part)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// proved says that what is on disk of payload [from, to) may be handed
// out, whoever sent it.
func (e *entry) proved(from, to int64) bool {
	if e.link.proven {
		return true
	}
	for i, j := e.grid.at(from), e.grid.at(to-1)+1; i < j; i++ {
		if !e.state.verified(i) && !e.grid.checked(e.grid.part(i)) {
			return false
		}
	}
	return true
}

// proof is the comparison of one part with its digest, for all who wait.
type proof struct {
	done chan struct{}
	err  error // why it could not be compared; read only after done
}

// compare has a part that is all there compared with its digest. When it
// returns nil, the part is verified, or gone, or its stream goes on.
func (e *entry) compare(ctx context.Context, part int) error {
	e.mu.Lock()
	p := e.proofs[part]
	if p == nil {
		if e.closing {
			e.mu.Unlock()
			return fs.ErrClosed
		}
		p = &proof{done: make(chan struct{})}
		e.proofs[part] = p
		e.jobs.Add(1)
		go func() {
			defer e.unuse()
			p.err = e.comparePart(part)
			e.mu.Lock()
			delete(e.proofs, part)
			e.mu.Unlock()
			close(p.done)
		}()
	}
	e.mu.Unlock()
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *entry) comparePart(part int) error {
	if e.partVerified(part) {
		return nil
	}
	if e.file.Parts[part].Encoding != layout.Raw {
		// Only its stream can tell, which may be at its end just now.
		select {
		case <-time.After(verifyPause):
		case <-e.ctx.Done():
		}
		e.forgetUnseen(part)
		return nil
	}
	ok, err := e.hashPart(part)
	switch {
	case err != nil:
		return err
	case ok:
		e.vouch(part)
	default:
		_ = e.drop(part, nil, "whole") // it is logged, and tried again unless it is out of service
	}
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
