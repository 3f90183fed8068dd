package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// donor is another cached file, open to be copied from. Its lock keeps it
// from being evicted meanwhile.
type donor struct {
	entry
}

// openDonor opens a cached file by its key. There may be none any more.
func (c *Cache) openDonor(key string) (*donor, error) {
	c.opts.before("donor")
	d, err := c.donorOf(key)
	if err != nil {
		return nil, err
	}
	if err := d.openToRead(lockNow); err != nil {
		d.closeFiles()
		return nil, err
	}
	return d, nil
}

// donorOf makes a donor of a cached file's record, with no file open yet.
func (c *Cache) donorOf(key string) (*donor, error) {
	r, rest, f, err := c.readRecord(key)
	if err != nil {
		return nil, err
	}
	m, err := readMap(rest, r.Size)
	_ = f.Close()
	if err != nil {
		return nil, errors.Join(errDamaged, err)
	}
	d := &donor{entry{cache: c, key: key, file: r.layout(m)}}
	if d.file.Index != nil {
		if x := c.peerIndex(&r); x != nil {
			d.file.Index = x
		}
	}
	d.grid = r.grid(d.file)
	return d, nil
}

// openToRead opens the donor's files. With locks that are only tried it
// waits for nobody: who is just setting the file up, or evicting it, may be
// stopped.
func (d *donor) openToRead(locked locker) error {
	name := d.path(".state")
	var sf *os.File
	err := error(unix.EROFS)
	if !d.cache.onlyRead {
		sf, err = d.cache.root.OpenFile(name, os.O_RDWR|openFlags, 0)
	}
	kind, open := int16(unix.F_WRLCK), openStateLocked
	if readOnly(err) {
		sf, err = d.cache.root.OpenFile(name, os.O_RDONLY|openFlags, 0)
		kind, open = unix.F_RDLCK, openReadOnlyLocked
	}
	if err != nil {
		return err
	}
	if err = locked(sf, unix.F_RDLCK, lockInUse, 1); err == nil {
		if err = locked(sf, kind, lockSetup, 1); err == nil {
			d.state, err = open(sf, d.key, d.grid.pieces())
			unlock(sf, lockSetup, 1)
		}
	}
	if err != nil {
		_ = sf.Close()
		return err
	}
	d.data, err = d.cache.root.OpenFile(d.path(".data"), os.O_RDONLY|openFlags, 0)
	return err
}

// locker takes a lock, or says why not.
type locker func(f *os.File, kind int16, off, n int64) error

// lockNow is a locker that does not wait.
func lockNow(f *os.File, kind int16, off, n int64) error {
	ok, err := tryLock(f, kind, off, n)
	if err == nil && !ok {
		err = errHeld
	}
	return err
}

// alone has one fetch of a part with a given digest at a time, for the
// process: who comes second waits and copies. It returns what ends the
// turn, or nil when the wait ended with ctx.
func (c *Cache) alone(ctx context.Context, e *entry, part int) (done func()) {
	digest := e.file.Parts[part].Digest
	for {
		c.mu.Lock()
		other := c.fetching[digest]
		if other == nil {
			mine := make(chan struct{})
			c.fetching[digest] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.fetching, digest)
				c.mu.Unlock()
				close(mine)
			}
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil
		}
	}
}

// keepFunc takes the payload of a piece, which is its own until it returns.
// from is where the bytes lie in another file, if its blocks may be shared,
// else nil.
type keepFunc func(i int, payload []byte, verified bool, from *clone)

// copied is the keepFunc of fetches, which wait for no disk.
func (e *entry) copied(i int, payload []byte, verified bool, from *clone) {
	e.arrive(&incoming{piece: i, payload: payload, verified: verified, by: byCopy, from: from}, nil)
}

// copyPieces fills those of pieces [from, to) of a part that another
// cached file holds, or the same file elsewhere. Which those are may not be
// known, or not be at hand, for longer than is waited for. keep gets each.
func (e *entry) copyPieces(part, from, to int, most time.Duration, keep keepFunc) {
	if e.file.Index != nil {
		e.copyGranules(e.ctx, from, to, most, keep)
		return
	}
	for _, p := range e.cache.places(e, part, most) {
		if e.state.hasAll(from, to) {
			return
		}
		d, back := e.borrow(p.key, most)
		if d == nil {
			continue
		}
		theirs := donated{entry: d, part: d.grid.part(p.first), piece: -1}
		for i := from; i < to; i++ {
			if !e.state.has(i) && e.wants(i) {
				e.copyPiece(part, i, &theirs, keep)
			}
		}
		putBuffer(theirs.buf)
		back()
	}
}

// wants reports whether somebody takes piece i, if it is copied: it is kept,
// or waited for.
func (e *entry) wants(i int) bool { return !e.unkept || e.cache.onlyRead || e.flying(i) }

// copyPiece copies piece i from another file's form of the same part,
// which may be cut into other pieces.
func (e *entry) copyPiece(part, i int, d *donated, keep keepFunc) {
	off, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	verified, ok := d.read(buf, off-e.file.Parts[part].Offset)
	if !ok {
		return
	}
	if !verified {
		var err error
		if verified, err = e.checkPiece(i, buf); err != nil {
			return
		}
		if e.grid.whole(part) && !verified {
			if !e.hasDigest(part, buf) {
				d.refute(e.file.Parts[part].Encoding)
				return
			}
			verified = true
		}
	}
	if !verified && d.entry != e {
		return // another source may have sent it
	}
	keep(i, buf, verified, nil)
}

// hasDigest says that payload is all of a part and hashes to its digest. A
// frame's digest is not over its payload.
func (e *entry) hasDigest(part int, payload []byte) bool {
	p := &e.file.Parts[part]
	sum := sha256.Sum256(payload)
	return p.Encoding == layout.Raw && "sha256:"+hex.EncodeToString(sum[:]) == p.Digest
}

// donated reads a part of another cached file. It looks at the checksum
// of each piece it takes from.
type donated struct {
	entry *entry
	part  int
	piece int    // the piece in buf; -1: none
	word  uint64 // its state
	buf   []byte
}

// read fills p from the part's offset off on. It reports whether all of it
// was verified, and whether all of it was there and as it was kept.
func (d *donated) read(p []byte, off int64) (verified, ok bool) {
	verified = true
	g := d.entry.grid
	for len(p) > 0 {
		i := g.first[d.part] + int(off/g.size[d.part])
		if !d.load(i) {
			return false, false
		}
		verified = verified && d.word&wordVerified != 0
		n := copy(p, d.buf[off%g.size[d.part]:])
		p, off = p[n:], off+int64(n)
	}
	return verified, true
}

func (d *donated) load(i int) bool {
	if i == d.piece {
		return true
	}
	d.piece = -1
	_, n := d.entry.grid.extent(i)
	if int64(cap(d.buf)) < n {
		putBuffer(d.buf)
		d.buf = getBuffer(n)
	}
	d.buf = d.buf[:n]
	var err error
	if d.word, err = d.entry.readKept(i, d.buf); err == nil {
		d.piece = i
		return true
	}
	if errors.Is(err, errNotAsKept) && d.word&wordSuspect == 0 {
		d.entry.discard(i, i+1, found{by: byCopy, cause: err, word: d.word})
	}
	return false
}

// refute discards what no digest has vouched for of a part that does not have
// its digest.
func (d *donated) refute(encoding layout.Encoding) {
	if encoding != layout.Raw {
		return // its digest is over other bytes
	}
	g := d.entry.grid
	for i := g.first[d.part]; i < g.first[d.part+1]; i++ {
		if word := d.entry.state.word(i); word&(wordPresent|wordSuspect|wordVerified) == wordPresent {
			d.entry.discard(i, i+1, found{by: byCopy, word: word})
		}
	}
}
