package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

const (
	// checkStep is how much is hashed before another look at the context.
	checkStep = 1 << 20
	// checkPatience bounds how long a check stands back for fetches before
	// each file.
	checkPatience = 10 * time.Second
	// checkPoll is the pause between two checks whether fetches run.
	checkPoll = 10 * time.Millisecond
	// checkPause is the wait before a check that another process is making is
	// tried again.
	checkPause = 100 * time.Millisecond
)

// checkComplete has the file checked and sealed if it has become complete.
func (e *entry) checkComplete() {
	if !e.disk.Complete() {
		return
	}
	e.peers.giveAllBack()
	if !e.state.Sealed() {
		e.cache.askCheck(e)
	}
}

// Unsealed is disk.Beside.Unsealed: the file may have to be sealed anew.
func (e *entry) Unsealed() {
	if e.link != nil && e.disk.Complete() {
		e.cache.askCheck(e)
	}
}

// askCheck has a complete file checked when no job runs.
func (c *Cache) askCheck(e *entry) {
	if e.asked.Swap(true) {
		return
	}
	select {
	case c.checks <- e:
	default:
		e.asked.Store(false) // more files than anybody has open; a later job asks again
	}
}

// checkLoop checks files, one at a time, until the cache is closed.
func (c *Cache) checkLoop() {
	for {
		select {
		case e := <-c.checks:
			c.standBack(e)
			e.asked.Store(false)
			if e.flights.use() {
				e.check()
				e.flights.unuse()
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// standBack waits until no job runs, for at most checkPatience.
func (c *Cache) standBack(e *entry) {
	for since := time.Now(); c.queue.count() > 0 && time.Since(since) < checkPatience; {
		select {
		case <-time.After(checkPoll):
		case <-e.ctx.Done():
			return
		}
	}
}

// check hashes what no digest has vouched for yet and seals the file: from
// then on the kernel may read it by itself.
func (e *entry) check() {
	switch ok, err := e.state.TryLockSeal(); {
	case err != nil:
		return
	case !ok:
		e.checkAgain() // another process is at it, and may not have seen what is new
		return
	}
	defer e.state.UnlockSeal()
	if e.state.Sealed() || e.state.Unsafe() || !e.checkParts() {
		return
	}
	if !e.disk.AllVerified() {
		e.checkComplete() // another process has put something else there meanwhile
		return
	}
	if err := e.disk.Sync(e.ctx.Err); err != nil {
		if !errors.Is(err, context.Canceled) { // not closing
			e.unsafe(err)
		}
		return
	}
	crashpoint.Reach("data synced")
	if err := e.state.Seal(); err != nil {
		e.cache.log.Warn("cached file is not safely on disk", "file", e.file.Name, "cause", err)
	}
	if !e.disk.AllVerified() {
		e.state.Unseal() // another process found a piece wrong meanwhile
		return
	}
	e.onSealed.run()
}

// unsafe notes that the disk has failed to take data, with err.
func (e *entry) unsafe(err error) {
	e.state.SetUnsafe()
	e.cache.log.Warn("cached file is not safely on disk", "file", e.file.Name, "cause", err)
}

// checkParts hashes the parts that are not verified. It reports false if one
// of them cannot be, or is wrong.
func (e *entry) checkParts() bool {
	for part := range e.file.Parts {
		if e.disk.PartVerified(part) {
			continue
		}
		if e.file.Parts[part].Encoding != layout.Raw {
			e.forgetUnseen(part)
			return false
		}
		drops := e.disk.Drops()
		if !e.state.HasAll(e.grid.Of(part)) {
			return false // it has gone meanwhile: what is on disk is nothing
		}
		pieces, ok, err := e.hashPart(part)
		if err != nil {
			return false // closing, or the disk does not give it back
		}
		if !ok {
			e.refute(part, pieces, drops) // no reader waits
			return false
		}
		e.vouch(part, pieces)
	}
	return true
}

// checkAgain has the file checked after a pause, if it is not sealed by then.
func (e *entry) checkAgain() {
	if !e.flights.use() {
		return
	}
	go func() {
		defer e.flights.unuse()
		t := time.NewTimer(checkPause)
		defer t.Stop()
		select {
		case <-t.C:
			e.checkComplete()
		case <-e.ctx.Done():
		}
	}()
}

// hashPart compares a complete raw part on disk with its digest.
func (e *entry) hashPart(part int) (pieces *hashed, ok bool, err error) {
	whole, pieces := sha256.New(), &hashed{}
	buf := buffers.Get(checkStep)
	defer buffers.Put(buf)
	for i, end := e.grid.Of(part); i < end; i++ {
		piece := xxhash.New()
		for off, n := e.grid.Extent(i); n > 0; {
			if e.ctx.Err() != nil {
				return nil, false, e.ctx.Err()
			}
			step := buf[:min(n, checkStep)]
			if err := e.disk.LoadPayload(off, step); err != nil {
				return nil, false, err
			}
			whole.Write(step)
			_, _ = piece.Write(step) // never fails
			off, n = off+int64(len(step)), n-int64(len(step))
		}
		pieces.sums = append(pieces.sums, piece.Sum64())
	}
	return pieces, digests.OfHash(whole) == e.file.Parts[part].Digest, nil
}
