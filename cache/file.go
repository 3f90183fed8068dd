package cache

import (
	"context"
	"io"
	"os"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// File is an open cached file. It is safe for concurrent use.
type File struct {
	entry  *entry
	name   string
	closed sync.Once
}

// ReadAt fills p from the file's offset off on, as io.ReaderAt does: less
// than len(p) only at the end of the file, with io.EOF, or with an error.
// Missing bytes are fetched. When ctx ends, ReadAt returns at once and the fetch
// goes on for others.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.read(ctx, p, off, false)
}

// ReadExactly is ReadAt for a caller that knows what it will want next:
// nothing is fetched ahead, and the read does not count as one of a sequence.
func (f *File) ReadExactly(ctx context.Context, p []byte, off int64) (int, error) {
	return f.read(ctx, p, off, true)
}

func (f *File) read(ctx context.Context, p []byte, off int64, exactly bool) (int, error) {
	e := f.entry
	size := e.file.Size()
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	err := e.readAt(ctx, p, off, exactly)
	e.cache.counts.read(ctx, len(p), err)
	if err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// Taken is told that bytes [off, off+n) of the file are in the page cache of a
// mount. What was fetched for readers alone need then not be in that of the
// cached file too. Taken does not block.
func (f *File) Taken(off, n int64) {
	e := f.entry
	if n < takenLeast || e.unkept() {
		return
	}
	if a := e.access(off, min(n, e.file.Size()-off)); a.From < a.To {
		e.passing.taken(a.From, a.To)
	}
}

// Untaken is told that no mount has pages of the file any more: those of the
// cached file stay.
func (f *File) Untaken() { f.entry.passing.none() }

// Prefetch queues all missing bytes, to be fetched when nobody waits for others.
// It returns at once.
func (f *File) Prefetch() {
	f.entry.flights.queueMissing(prefetched, 0, f.entry.grid.Pieces(), 0)
	f.entry.backlog.want()
}

// OnDrop registers call, which is called with bytes [off, off+n) of the file, or
// with n 0 for all of it, that may have been read and are no longer what the
// file holds: copies of them must be dropped. Pieces that were taken back before
// are reported as well, for copies that another process has left. call may
// block.
func (f *File) OnDrop(call func(off, n int64)) { f.entry.disk.OnDrop(call) }

// OnSealed registers call, which is called when Backing begins to return the file.
// call must not wait for the disk or for a READ.
func (f *File) OnSealed(call func()) { f.entry.onSealed.add(call) }

// Backing returns the file on disk for the kernel to read by itself. ok is
// true only when the file is complete, verified and safely on disk. The
// result is read-only and open until f is closed.
func (f *File) Backing() (file *os.File, ok bool) {
	e := f.entry
	if !e.state.Sealed() {
		return nil, false
	}
	b, err := e.disk.Backing()
	if err != nil {
		e.cache.log.Warn("cached file cannot be opened for the kernel", "file", f.name, "cause", err)
	}
	return b, err == nil
}

// Hold returns a descriptor that keeps the file from being evicted for as
// long as it is open, in this process or another; nil if the file is not on
// disk.
func (f *File) Hold() (*os.File, error) {
	if !f.entry.disk.OnDisk() {
		return nil, nil
	}
	return f.entry.disk.Hold()
}

// Cached returns how many bytes of the payload are present.
func (f *File) Cached() int64 { return f.entry.disk.Cached() }

// Complete reports whether all of the file's bytes are present.
func (f *File) Complete() bool { return f.entry.disk.Complete() }

// Verified reports whether all of them were hashed against the artifact.
func (f *File) Verified() bool { return f.entry.disk.AllVerified() }

// Kept reports whether what is fetched of the file can be kept on disk, as
// far as is known.
func (f *File) Kept() bool { return !f.entry.unkept() }

// ReadOnly reports whether it cannot because the cache can only be read. What
// is there is served from it.
func (f *File) ReadOnly() bool { return disk.IsReadOnly(f.entry.refused) }

// CopyTo makes dst, which is empty and has the file's size, hold the file:
// as a second name for the same blocks if the file system can, else
// copied by the kernel, holes kept. It fetches nothing: ok is false, and
// dst as it was, unless all of the file is present and verified. onBytes
// is called with the bytes of payload that were copied.
func (f *File) CopyTo(ctx context.Context, dst *os.File, onBytes func(int64)) (ok bool, err error) {
	return f.entry.copyTo(ctx, dst, onBytes)
}

func (e *entry) copyTo(ctx context.Context, dst *os.File, onBytes func(int64)) (ok bool, err error) {
	if !e.disk.OnDisk() || !e.disk.AllVerified() || e.state.Unsafe() {
		return false, nil
	}
	return true, e.disk.CopyTo(ctx, dst, onBytes)
}

// Close closes the file. Reads must have ended.
func (f *File) Close() error {
	f.closed.Do(func() { f.entry.cache.release(f.entry) })
	return nil
}
