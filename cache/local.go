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

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
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
	c := newCache(Options{Log: log})
	d, err := disk.OpenToRead(dir, c.hooks())
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", dir, err)
	}
	c.setDir(d)
	return &Reader{c}, nil
}

// Close closes the directory. The files must have been closed.
func (r *Reader) Close() error {
	r.cache.stop()
	r.cache.index.close()
	return r.cache.dir.Close()
}

// Blob is Cache.Blob. One that is damaged stays.
func (r *Reader) Blob(digest string) ([]byte, error) { return r.cache.Blob(digest) }

// Ref is Cache.Ref.
func (r *Reader) Ref(reference string) (digest string, seen time.Time, err error) {
	return r.cache.Ref(reference)
}

// Local is what a cache has of a file, and of its parts in other files. It is a
// Filler that keeps nothing.
type Local struct {
	Filler

	copying sync.Mutex     // held from a claim that copies to its release: one has memory at a time
	held    map[int][]byte // under Filler.mu: pieces that were copied for the claim
}

// File returns what the cache has of f, whose bytes come from src. It must be
// closed.
func (r *Reader) File(f *layout.File, src Source) (*Local, error) {
	g := disk.NewGrid(f)
	key := keyOf(f, g, src)
	e := newEntry(r.cache, f, g, nil)
	err := e.openSafe(key, disk.Read)
	if err != nil {
		err = e.open(key, disk.InMemory) // as if the cache had nothing of it
	}
	if err != nil {
		e.stop()
		return nil, fmt.Errorf("cache: file %q: %w", f.Name, err)
	}
	return &Local{Filler: Filler{entry: e, sums: map[int][]uint64{}}}, nil
}

// Part returns the payload of a part if all of it was verified, in the file
// itself or in another, else nil.
func (l *Local) Part(part int) io.Reader {
	if r := l.Filler.Part(part); r != nil {
		return r
	}
	e := l.entry
	for _, p := range e.cache.index.find(e, part, patient) {
		r := elsewherePart{e, p}
		if b, back := e.peers.borrow(p.key, patient); b != nil {
			ok := r.verified(b.file, 0, p.length)
			back()
			if ok {
				return io.NewSectionReader(r, 0, p.length)
			}
		}
	}
	return nil
}

// elsewherePart reads a part that another file has, which is open only for as
// long as something is read.
type elsewherePart struct {
	entry *entry
	at    partOf
}

var errReturned = errors.New("the file that had it is gone from the cache")

func (r elsewherePart) ReadAt(p []byte, off int64) (int, error) {
	b, back := r.entry.peers.borrow(r.at.key, patient)
	if b == nil {
		return 0, errReturned
	}
	defer back()
	if !r.verified(b.file, off, int64(len(p))) {
		return 0, errReturned
	}
	if err := b.file.LoadPayload(b.file.Layout.Parts[r.at.part].Offset+off, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// verified reports whether n bytes of the part from off on are verified in f.
func (r elsewherePart) verified(f *disk.File, off, n int64) bool {
	start := f.Layout.Parts[r.at.part].Offset + off
	return f.State.AllVerified(f.Grid.At(start), f.Grid.At(start+n-1)+1) && !f.State.Unsafe()
}

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
	return l.entry.disk.OnDisk() && l.usable(part, i) || l.heldPiece(i) != nil
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
		start, n := l.entry.grid.Extent(i)
		if data := l.heldPiece(i); data != nil {
			copy(p[:n], data)
		} else if !l.entry.disk.OnDisk() || !l.Filler.Load(part, start-l.entry.file.Parts[part].Offset, p[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// Claim rechecks the pieces that were written before the last boot, and copies
// pieces of other files, to be loaded until release is called: for a packed file
// each piece that another file has, for others only if that completes the
// stretch. It locks nothing: another process would wait for bytes that are not
// kept.
func (l *Local) Claim(ctx context.Context, part int, off, n int64) (release func(), err error) {
	if l.Here(part, off, n) {
		return func() {}, nil
	}
	from, to := l.pieces(part, off, n)
	return l.within(ctx, func() (func(), error) {
		l.entry.recheck(from, to)
		return l.copyHere(part, from, to), nil
	})
}

// copyHere holds those of pieces [from, to) that only other files have.
func (l *Local) copyHere(part, from, to int) (release func()) {
	l.copying.Lock()
	missing := false
	l.entry.peers.copyPieces(part, from, to, patient, func(i int, payload []byte, verified bool, _ *disk.Clone) {
		if verified && !l.has(part, i) {
			l.mu.Lock()
			if l.held == nil {
				l.held = map[int][]byte{}
			}
			l.held[i] = append(buffers.Get(int64(len(payload)))[:0], payload...)
			l.mu.Unlock()
		}
	})
	for i := from; i < to && !missing; i++ {
		missing = !l.has(part, i)
	}
	release = func() {
		l.mu.Lock()
		for _, data := range l.held {
			buffers.Put(data)
		}
		clear(l.held)
		l.mu.Unlock()
		l.copying.Unlock()
	}
	if missing && l.entry.file.Index == nil { // the whole stretch is fetched
		release()
		return func() {}
	}
	return release
}

// Keeps reports that nothing is kept.
func (l *Local) Keeps() bool { return false }

// Own claims nothing: see Keep.
func (l *Local) Own(int) (release func(), ok bool) { return nil, false }

// Keep keeps nothing.
func (l *Local) Keep(int, int64, []byte, bool) {}

// Drop is called when what was loaded of a part without digests of pieces,
// and what was fetched of it, is wrong. What the cache has of the part is
// discarded: else it would be loaded, and wrong, the next time too.
func (l *Local) Drop(part int) {
	e := l.entry
	if l.take(part) == nil || !e.disk.OnDisk() {
		return // nothing was loaded
	}
	f, err := e.cache.dir.Open(e.disk.Key, e.file, e.grid, disk.Inspect, nil)
	if err != nil {
		return
	}
	defer f.Close()
	if first, end := e.grid.Of(part); !f.ReadOnly() {
		f.Discard(first, end, disk.Found{By: disk.ByDigest})
	}
}

// Cached returns how many bytes of the payload need not be fetched.
func (l *Local) Cached() (n int64) {
	for part := range l.entry.file.Parts {
		if l.Part(part) != nil {
			n += l.entry.file.Parts[part].Length
			continue
		}
		for i, end := l.entry.grid.Of(part); i < end && l.entry.disk.OnDisk(); i++ {
			if l.usable(part, i) {
				_, size := l.entry.grid.Extent(i)
				n += size
			}
		}
	}
	return n
}

// CopyTo is File.CopyTo for a file as it was found.
func (l *Local) CopyTo(ctx context.Context, dst *os.File, onBytes func(int64)) (ok bool, err error) {
	return l.entry.copyTo(ctx, dst, onBytes)
}

// Close closes the file.
func (l *Local) Close() error {
	l.entry.close()
	return nil
}
