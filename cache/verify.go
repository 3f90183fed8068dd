package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

const (
	// verifyStep is how much is hashed before another look whether readers
	// wait.
	verifyStep = 1 << 20
	// verifyPatience bounds how long verification stands back for fetches
	// before each file.
	verifyPatience = 10 * time.Second
	verifyPause    = 10 * time.Millisecond
	// checkPause is how long a check waits that another process is at.
	checkPause = 100 * time.Millisecond
)

// askCheck has a complete file verified when no reader waits.
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

func (c *Cache) verifyLoop() {
	for {
		select {
		case e := <-c.checks:
			c.standBack(e)
			e.asked.Store(false)
			if e.use() {
				e.check()
				e.unuse()
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// standBack waits until nothing is fetched.
func (c *Cache) standBack(e *entry) {
	for since := time.Now(); c.queue.busy() && time.Since(since) < verifyPatience; {
		select {
		case <-time.After(verifyPause):
		case <-e.ctx.Done():
			return
		}
	}
}

// check hashes what no digest has vouched for yet and seals the file: from
// then on the kernel may read it by itself.
func (e *entry) check() {
	switch ok, err := tryLock(e.state.file, unix.F_WRLCK, lockSeal, 1); {
	case err != nil:
		return
	case !ok:
		e.checkAgain() // another process is at it, and may not have seen what is new
		return
	}
	defer unlock(e.state.file, lockSeal, 1)
	if e.state.sealed() || e.state.unsafe() {
		return
	}
	for part := range e.file.Parts {
		if e.partVerified(part) {
			continue
		}
		if e.file.Parts[part].Encoding != layout.Raw {
			e.forgetUnseen(part)
			return
		}
		drops := e.drops.Load()
		if !e.state.hasAll(e.grid.first[part], e.grid.first[part+1]) {
			return // it has gone meanwhile: what is on disk is nothing
		}
		pieces, ok, err := e.hashPart(part)
		if err != nil {
			return // closing, or the disk does not give it back
		}
		if !ok {
			e.refute(part, pieces, drops) // no reader waits
			return
		}
		e.vouch(part, pieces)
	}
	if !e.allVerified() {
		e.checkComplete() // another process has put something else there meanwhile
		return
	}
	switch err := e.syncData(); {
	case err == nil:
	case errors.Is(err, context.Canceled): // closing
		return
	default:
		e.state.setUnsafe()
		e.cache.log.Warn("cached file is not safely on disk", "file", e.file.Name, "cause", err)
		return
	}
	crashpoint.Reach("data synced")
	if err := e.state.seal(); err != nil {
		e.cache.log.Warn("cached file is not safely on disk", "file", e.file.Name, "cause", err)
	}
	if !e.allVerified() {
		e.state.unseal() // another process found a piece wrong meanwhile
	}
}

// checkAgain has the file checked after a pause, if it is not sealed by then.
func (e *entry) checkAgain() {
	if !e.use() {
		return
	}
	go func() {
		defer e.unuse()
		t := time.NewTimer(checkPause)
		defer t.Stop()
		select {
		case <-t.C:
			e.checkComplete()
		case <-e.ctx.Done():
		}
	}()
}

// syncStep bounds how long a process that is killed may take to die: while
// it waits for the disk it cannot, and all the mount's readers wait for its
// end.
const syncStep = 4 << 20

// syncData puts the file's data on disk, in steps.
func (e *entry) syncData() error {
	fd, m := int(e.data.Fd()), e.file.Map
	for off, ok := m.SeekData(0); ok; off, ok = m.SeekData(off + syncStep) {
		if e.ctx.Err() != nil {
			return e.ctx.Err()
		}
		err := unix.SyncFileRange(fd, off, min(syncStep, m.Size()-off),
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
		if err != nil {
			return os.NewSyscallError("sync_file_range", err)
		}
	}
	return os.NewSyscallError("fdatasync", unix.Fdatasync(fd))
}

// allVerified says that all of the file is there and was hashed.
func (e *entry) allVerified() bool {
	for part := range e.file.Parts {
		if !e.partVerified(part) {
			return false
		}
	}
	return true
}

func (e *entry) partVerified(part int) bool {
	for i := e.grid.first[part]; i < e.grid.first[part+1]; i++ {
		if !e.state.verified(i) {
			return false
		}
	}
	return true
}

// hashPart compares a complete raw part on disk with its digest.
func (e *entry) hashPart(part int) (pieces *hashed, ok bool, err error) {
	whole, pieces := sha256.New(), &hashed{}
	buf := getBuffer(verifyStep)
	defer putBuffer(buf)
	for i := e.grid.first[part]; i < e.grid.first[part+1]; i++ {
		piece := xxhash.New()
		for off, n := e.grid.extent(i); n > 0; {
			if e.ctx.Err() != nil {
				return nil, false, e.ctx.Err()
			}
			step := buf[:min(n, verifyStep)]
			if err := e.loadPayload(off, step); err != nil {
				return nil, false, err
			}
			whole.Write(step)
			_, _ = piece.Write(step) // never fails
			off, n = off+int64(len(step)), n-int64(len(step))
		}
		pieces.sums = append(pieces.sums, piece.Sum64())
	}
	return pieces, "sha256:"+hex.EncodeToString(whole.Sum(nil)) == e.file.Parts[part].Digest, nil
}
