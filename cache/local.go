package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Reader reads what a cache has, and keeps nothing in it: no file is made and
// no piece is stored. It is safe for concurrent use.
type Reader struct {
	cache *Cache // without a queue: nothing is fetched
}

// OpenReader opens the cache in dir to be read. If there is no such directory,
// the error is fs.ErrNotExist. A directory that other users can write is
// refused, as by Open.
func OpenReader(dir string, log *slog.Logger) (*Reader, error) {
	if err := checkRoot(dir); err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c := &Cache{opts: Options{Log: log}.withDefaults(), root: root, onlyRead: true}
	c.log = c.opts.Log
	c.ctx, c.stop = context.WithCancel(context.Background())
	return &Reader{c}, nil
}

// Close lets go of the directory. The files must have been closed.
func (r *Reader) Close() error {
	r.cache.stop()
	r.cache.index.end()
	return r.cache.root.Close()
}

// Blob is Cache.Blob. One that is damaged stays.
func (r *Reader) Blob(digest string) ([]byte, error) { return r.cache.Blob(digest) }

// Ref is Cache.Ref.
func (r *Reader) Ref(reference string) (digest string, seen time.Time, err error) {
	return r.cache.Ref(reference)
}

// Local is what a cache has of a file, and of its parts in other files. It is
// a Filler that keeps nothing.
type Local struct {
	Filler

	copying sync.Mutex     // held from a claim that copies to its release: one has memory at a time
	held    map[int][]byte // under Filler.mu: pieces that were copied for the claim
}

// File returns what the cache has of f, whose bytes come from src. It must be
// closed.
func (r *Reader) File(f *layout.File, src Source) (*Local, error) {
	g := newGrid(f)
	e := &entry{cache: r.cache, key: keyOf(f, g, src), file: f, grid: g}
	e.ctx, e.stop = context.WithCancel(r.cache.ctx)
	err := e.openReadOnly()
	if err == nil && e.state.unsafe() {
		e.closeFiles()
		err = errUnsafe
	}
	if err != nil {
		err = e.openUnkept() // as if the cache had nothing of it
	}
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("cache: file %q: %w", f.Name, err)
	}
	return &Local{Filler: Filler{entry: e, sums: map[int][]uint64{}}}, nil
}

// Part returns the payload of a part when all of it was verified, in the file
// itself or in another, else nil.
func (l *Local) Part(part int) io.Reader {
	e := l.entry
	if r := e.verifiedPart(part); r != nil {
		return r
	}
	for _, p := range e.cache.places(e, part, patient) {
		b := borrowed{e, p}
		if d, back := e.borrow(p.key, patient); d != nil {
			ok := b.verified(d, 0, p.length)
			back()
			if ok {
				return io.NewSectionReader(b, 0, p.length)
			}
		}
	}
	return nil
}

// borrowed reads a part that another file has, which is open only for as long
// as something is read.
type borrowed struct {
	entry *entry
	place place
}

var errReturned = errors.New("the file that had it is gone from the cache")

func (b borrowed) ReadAt(p []byte, off int64) (int, error) {
	d, back := b.entry.borrow(b.place.key, patient)
	if d == nil {
		return 0, errReturned
	}
	defer back()
	if !b.verified(d, off, int64(len(p))) {
		return 0, errReturned
	}
	if err := d.loadPayload(d.partAt(b.place).Offset+off, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// verified reports whether n bytes of the part from off on are verified in d.
func (b borrowed) verified(d *entry, off, n int64) bool {
	start := d.partAt(b.place).Offset + off
	for i, last := d.grid.at(start), d.grid.at(start+n-1); i <= last; i++ {
		if !d.state.verified(i) {
			return false
		}
	}
	return !d.state.unsafe()
}

func (e *entry) partAt(p place) *layout.Part { return &e.file.Parts[e.grid.part(p.first)] }

// Here reports whether Load would succeed now.
func (l *Local) Here(part int, off, n int64) bool {
	for i, to := l.pieces(part, off, n); i < to; i++ {
		if !l.has(part, i) {
			return false
		}
	}
	return true
}

func (l *Local) has(part, i int) bool {
	return !l.entry.inMemory() && l.usable(part, i) || l.heldPiece(i) != nil
}

// heldPiece returns a piece that was copied, or nil.
func (l *Local) heldPiece(i int) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[i]
}

// Load fills p, if all of that stretch is there.
func (l *Local) Load(part int, off int64, p []byte) bool {
	for i, to := l.pieces(part, off, int64(len(p))); i < to; i++ {
		start, n := l.entry.grid.extent(i)
		if data := l.heldPiece(i); data != nil {
			copy(p[:n], data)
		} else if l.entry.inMemory() || !l.Filler.Load(part, start-l.entry.file.Parts[part].Offset, p[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// Claim looks at what is there from before the last boot, and copies what
// other files have, if with that the stretch is complete, to be loaded until
// release is called. It locks nothing: others who fetch the same would wait
// for what is not kept.
func (l *Local) Claim(ctx context.Context, part int, off, n int64) (release func(), err error) {
	if l.Here(part, off, n) {
		return func() {}, nil
	}
	from, to := l.pieces(part, off, n)
	return l.within(ctx, func() (func(), error) {
		if e := l.entry; !e.inMemory() {
			for i := from; i < to; i++ {
				if e.state.suspect(i) {
					e.recheck(i)
				}
			}
		}
		return l.copyHere(part, from, to), nil
	})
}

// copyHere holds those of pieces [from, to) that only other files have.
func (l *Local) copyHere(part, from, to int) (release func()) {
	l.copying.Lock()
	missing := false
	l.entry.copyPieces(part, from, to, patient, func(i int, payload []byte, verified bool, _ *clone) {
		if verified && !l.has(part, i) {
			l.mu.Lock()
			if l.held == nil {
				l.held = map[int][]byte{}
			}
			l.held[i] = append(getBuffer(int64(len(payload)))[:0], payload...)
			l.mu.Unlock()
		}
	})
	for i := from; i < to && !missing; i++ {
		missing = !l.has(part, i)
	}
	release = func() {
		l.mu.Lock()
		for _, data := range l.held {
			putBuffer(data)
		}
		clear(l.held)
		l.mu.Unlock()
		l.copying.Unlock()
	}
	if missing { // all of it is fetched
		release()
		return func() {}
	}
	return release
}

// Own claims nothing: see Keep.
func (l *Local) Own(int) (release func(), ok bool) { return nil, false }

// Keep keeps nothing.
func (l *Local) Keep(int, int64, []byte, bool) {}

// Drop is called when what was loaded of a part without digests of pieces,
// and what was fetched of it, is wrong. What the cache has of the part is
// discarded: else it would be loaded, and wrong, the next time too.
func (l *Local) Drop(part int) {
	e := l.entry
	if l.take(part) == nil || e.inMemory() {
		return // nothing was loaded
	}
	f, err := e.cache.root.OpenFile(e.path(".state"), os.O_RDWR|openFlags, 0)
	if err != nil {
		return // it can only be read
	}
	defer f.Close()
	if err := lock(f, unix.F_RDLCK, lockInUse, 1); err != nil {
		return
	}
	w := &entry{cache: e.cache, key: e.key, file: e.file, grid: e.grid, ctx: e.ctx}
	if w.state, err = openState(f, e.key, e.grid.pieces()); err != nil {
		return
	}
	defer w.state.unmap()
	w.discard(e.grid.first[part], e.grid.first[part+1], found{by: byDigest})
}

// Cached is how many bytes of the payload need not be fetched.
func (l *Local) Cached() (n int64) {
	for part := range l.entry.file.Parts {
		if l.Part(part) != nil {
			n += l.entry.file.Parts[part].Length
			continue
		}
		for i := l.entry.grid.first[part]; i < l.entry.grid.first[part+1] && !l.entry.inMemory(); i++ {
			if l.usable(part, i) {
				_, size := l.entry.grid.extent(i)
				n += size
			}
		}
	}
	return n
}

func (e *entry) verifiedPart(part int) io.Reader {
	if e.state.unsafe() || !e.partVerified(part) {
		return nil
	}
	p := &e.file.Parts[part]
	return io.NewSectionReader(payloadAt{e}, p.Offset, p.Length)
}

// payloadAt reads a file's payload that is all there.
type payloadAt struct{ entry *entry }

// ReadAt never has to tell the payload's end: who asks knows it.
func (r payloadAt) ReadAt(p []byte, off int64) (int, error) {
	if n := r.entry.file.PayloadSize() - off; n < int64(len(p)) {
		return 0, io.ErrUnexpectedEOF
	}
	if err := r.entry.loadPayload(off, p); err != nil {
		r.entry.loseWithin(off, int64(len(p)), err)
		return 0, err
	}
	return len(p), nil
}

// Close lets go of the file. Reading counts as use, for the order of
// eviction.
func (l *Local) Close() error {
	e := l.entry
	e.shut()
	e.jobs.Wait()
	e.returnDonors()
	if !e.inMemory() {
		e.touch()
	}
	e.closeFiles()
	return nil
}
