package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// File is an open cached file. It is safe for concurrent use.
type File struct {
	entry  *entry
	name   string
	closed sync.Once
}

// ReadAt fills p from the file's offset off on, as io.ReaderAt does: less
// than len(p) only at the end of the file, with io.EOF, or with an error.
// What is missing is fetched. When ctx ends, ReadAt returns at once and
// the fetch goes on for others.
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

// readAt fills p, which lies within the file.
func (e *entry) readAt(ctx context.Context, p []byte, off int64, exactly bool) error {
	if !e.noticed() {
		e.cache.notice()
	}
	l := look{off: off, n: int64(len(p)), from: e.file.Map.PayloadAt(off), to: e.file.Map.PayloadAt(off + int64(len(p)))}
	if exactly {
		l.most = nothingAhead
	}
	unkept, err := e.ready(ctx, l)
	if err != nil {
		return err
	}
	err = errUnsafe
	if !e.state.unsafe() {
		err = e.readData(p, l)
	}
	if err != nil {
		return e.readAgain(ctx, p, l, unkept, err)
	}
	for i, payload := range unkept {
		e.overlay(p, off, i, payload)
	}
	return nil
}

// ready returns when what is looked at is on disk and may be handed out,
// with those pieces that could not be kept there.
func (e *entry) ready(ctx context.Context, l look) (unkept map[int][]byte, err error) {
	for ready := l.from == l.to || e.state.sealed(); !ready; {
		if err := e.prove(ctx, l.from, l.to); err != nil {
			return nil, err
		}
		if unkept, err = e.ensure(ctx, l); err != nil {
			return nil, err
		}
		// What has gone meanwhile came anew, and must be proved again.
		ready = e.proved(l.from, l.to, unkept)
	}
	return unkept, nil
}

// readData fills p with what is looked at from the data file. Large holes
// are not read from it: the kernel would fill its page cache with zeros for
// them.
func (e *entry) readData(p []byte, l look) error {
	done := int64(0) // of p
	pending := int64(0)
	flush := func() error {
		if pending == done {
			return nil
		}
		_, err := e.readDisk(p[done:pending], l.off+done)
		done = pending
		return err
	}
	for run := range e.file.Map.Payload(l.from, l.to-l.from) {
		at := run.Offset - l.off
		if at-pending >= hole {
			if err := flush(); err != nil {
				return err
			}
			clear(p[done:at])
			done = at
		}
		pending = at + run.Length
	}
	if int64(len(p))-pending < hole {
		pending = int64(len(p))
	}
	if err := flush(); err != nil {
		return err
	}
	// No checksum is over small holes that were read along with the data.
	end := int64(0)
	for run := range e.file.Map.Payload(l.from, l.to-l.from) {
		clear(p[end : run.Offset-l.off])
		end = run.Offset - l.off + run.Length
	}
	clear(p[end:])
	return nil
}

// hole is the size from which a hole is not read from disk.
const hole = 32 << 10

// ensure makes the payload of a read present and has fetched what an
// orderly reader will want next.
func (e *entry) ensure(ctx context.Context, l look) (map[int][]byte, error) {
	i, j := e.grid.at(l.from), e.grid.at(l.to-1)+1
	here := e.state.hasAll(i, j)
	l.missing = !here
	if l.most != nothingAhead {
		if e.unkept || e.cache.tight() {
			l.most = spareSize / 2 // what is held in memory must be there when it is read
		}
		e.fetchAhead(e.reading.saw(l, e.file.PayloadSize(), e.link.RoundTrip()))
	}
	if here {
		return nil, nil
	}
	e.cache.counts.misses.Add(1)
	e.cache.counts.waiting.Add(1)
	defer e.cache.counts.waiting.Add(-1)
	return e.demand(ctx, i, j)
}

// fetchAhead queues what is missing of a reach, in the order of the reads
// to come.
func (e *entry) fetchAhead(r reach) {
	if r.from < r.to {
		e.queueMissing(ahead, e.grid.at(r.from), e.grid.at(r.to-1)+1, r.request)
	}
	queued := -1 // steps may be shorter than pieces
	for k := range int64(r.count) {
		off := r.off + k*r.step
		if off < 0 || off >= e.file.Size() {
			return
		}
		from, to := e.file.Map.PayloadAt(off), e.file.Map.PayloadAt(min(off+r.n, e.file.Size()))
		if from == to {
			continue
		}
		if i, j := e.grid.at(from), e.grid.at(to-1)+1; i != queued {
			e.queueMissing(ahead, i, j, 0)
			queued = i
		}
	}
}

// Prefetch has all that is missing fetched when nobody waits for other
// bytes. It returns at once.
func (f *File) Prefetch() {
	f.entry.queueMissing(prefetched, 0, f.entry.grid.pieces(), 0)
}

// queueMissing queues what is missing of pieces [i, j), to be asked for in
// requests of that many bytes; 0: as it suits the link.
func (e *entry) queueMissing(p priority, i, j int, request int64) {
	var want []span
	for ; i < j; i++ {
		if !e.state.has(i) && !e.state.suspect(i) {
			want = appendPiece(want, e, i)
		}
	}
	for k := range want {
		want[k].request = request
	}
	e.cache.queue.push(p, want...)
}

// overlay copies the payload of piece i, which is not on disk, to where it
// belongs in p, which is the file from off on.
func (e *entry) overlay(p []byte, off int64, i int, payload []byte) {
	start, _ := e.grid.extent(i)
	for run := range e.file.Map.Payload(start, int64(len(payload))) {
		data := payload[:run.Length]
		payload = payload[run.Length:]
		at := run.Offset - off
		if at < 0 {
			data = data[min(-at, int64(len(data))):]
			at = 0
		}
		if at < int64(len(p)) {
			copy(p[at:], data)
		}
	}
}

// Backing returns the file on disk for the kernel to read by itself. ok is
// true only when the file is complete, verified and safely on disk. The
// result is read-only and open until f is closed.
func (f *File) Backing() (file *os.File, ok bool) {
	e := f.entry
	if !e.state.sealed() {
		return nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.backing == nil {
		// By its descriptor: the name may be another file's by now.
		b, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", e.data.Fd()), os.O_RDONLY, 0)
		if err != nil {
			e.cache.log.Warn("cached file cannot be opened for the kernel", "file", f.name, "cause", err)
			return nil, false
		}
		e.backing = b
	}
	return e.backing, true
}

// Hold returns a descriptor that keeps the file from being evicted for as
// long as it is open, in this process or another; nil where the file is
// not on disk. It is of an open file description of its own: the
// locks of fetches go with the process that fetches.
func (f *File) Hold() (*os.File, error) {
	if f.entry.inMemory() {
		return nil, nil
	}
	hold, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.entry.state.file.Fd()), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	// Nobody can have it exclusively: we have it shared.
	if err := lock(hold, unix.F_RDLCK, lockInUse, 1); err != nil {
		_ = hold.Close()
		return nil, err
	}
	return hold, nil
}

// Cached is how many bytes of the payload are present.
func (f *File) Cached() int64 {
	e := f.entry
	var n int64
	e.state.each(func(i int) {
		if e.state.has(i) {
			_, size := e.grid.extent(i)
			n += size
		}
	})
	return n
}

// Complete says that all of the file's bytes are present.
func (f *File) Complete() bool {
	return f.entry.state.hasAll(0, f.entry.grid.pieces())
}

// Verified says that all of them were hashed against the artifact.
func (f *File) Verified() bool {
	for i := range f.entry.grid.pieces() {
		if !f.entry.state.verified(i) {
			return false
		}
	}
	return true
}

// Close lets go of the file. Reads must have ended.
func (f *File) Close() error {
	f.closed.Do(func() { f.entry.cache.release(f.entry) })
	return nil
}

// present is the number of pieces that are there.
func (e *entry) present() (n int) {
	e.state.each(func(i int) {
		if e.state.has(i) {
			n++
		}
	})
	return n
}
