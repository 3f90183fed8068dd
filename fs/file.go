package fs

import (
	"context"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// requestContext is a request's context, made from its cancel channel.
// Converting a channel to an interface does not allocate, and no context is
// reused for the next request.
type requestContext <-chan struct{}

func (c requestContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c requestContext) Done() <-chan struct{}       { return c }
func (c requestContext) Value(any) any               { return nil }

func (c requestContext) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}

// readResult is the answer to a READ. go-fuse calls Done once the answer is
// sent.
type readResult struct{ data []byte }

var readResults = sync.Pool{New: func() any { return new(readResult) }}

func newReadResult(data []byte) *readResult {
	r := readResults.Get().(*readResult)
	r.data = data
	return r
}

func (r *readResult) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }
func (r *readResult) Size() int                          { return len(r.data) }

func (r *readResult) Done() {
	r.data = nil
	readResults.Put(r)
}

// Read never returns fewer bytes than the file has at the offset: the kernel
// would take a short answer for the end of the file and show zeros.
func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := t.node(in.NodeId)
	if n == nil {
		return nil, fuse.EISDIR
	}
	size := n.Map.Size()
	if in.Offset >= uint64(size) {
		return newReadResult(nil), fuse.OK
	}
	t.seen(n)
	if t.declines(n, in) {
		return nil, fuse.EIO // the kernel repeats the READ page by page: see decline.go
	}
	off := int64(in.Offset)
	p := buf[:min(int64(len(buf)), size-off)]
	t.touched(n, off, int64(len(p)))
	if end := off + int64(len(p)); len(p) <= maxRequest && n.Map.PayloadAt(off) == n.Map.PayloadAt(end) {
		n.served(off, end-off)
		return newReadResult(zeros()[:len(p)]), fuse.OK
	}
	buffered := in.Flags&unix.O_DIRECT == 0 && in.ReadFlags&fuse.READ_LOCKOWNER == 0
	if buffered {
		defer n.reads.end(n.reads.begin(off, int64(in.Size)))
	}
	ctx := requestContext(cancel)
	err := readFull(ctx, n.Content, p, off)
	if err != nil && ctx.Err() != nil {
		err = t.readInterrupted(n, in, p, off)
	}
	if err == nil {
		n.served(off, int64(len(p)))
		if taker, ok := n.Content.(Taker); ok && buffered {
			taker.Taken(off, int64(len(p)))
		}
		return newReadResult(p), fuse.OK
	}
	errno := toErrno(err)
	if errno != syscall.EINTR {
		t.logRead(n, off, len(p), err)
	}
	return nil, fuse.Status(errno)
}

// reads are the buffered READs of a file that are being answered. The kernel
// holds the locks of their pages.
type reads struct {
	mu     sync.Mutex
	ranges []pageRange // by slot; an empty one is free
}

// begin notes a READ of n bytes, at least one, from off on, and returns its
// slot for end.
func (r *reads) begin(off, n int64) (slot int) {
	pages := pageRange{off &^ (pageSize - 1), (off + n + pageSize - 1) &^ (pageSize - 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slot = slices.Index(r.ranges, pageRange{}); slot >= 0 {
		r.ranges[slot] = pages
		return slot
	}
	r.ranges = append(r.ranges, pages)
	return len(r.ranges) - 1
}

// end takes a READ from the notes.
func (r *reads) end(slot int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges[slot] = pageRange{}
}

// first returns the pages of the first READ that overlaps a range, or an empty
// range at its end.
func (r *reads) first(in pageRange) pageRange {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := pageRange{in.end, in.end}
	for _, pages := range r.ranges {
		if pages != (pageRange{}) && pages.overlaps(in) && pages.off < first.off {
			first = pages
		}
	}
	return first
}

// served notes that length bytes from off on of a file are about to be answered.
func (n *node) served(off, length int64) {
	n.filled()
	n.declined.served(off, length)
	n.readers.served(off, length)
}

// readFull fills p or returns an error.
func readFull(ctx context.Context, c Content, p []byte, off int64) error {
	got, err := c.ReadAt(ctx, p, off)
	if got == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Lseek answers SEEK_DATA and SEEK_HOLE from the map alone. The kernel
// handles the other values of whence.
func (t *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return fuse.EINVAL
	}
	if in.Offset >= uint64(n.Map.Size()) { // also true of negative offsets
		return fuse.Status(unix.ENXIO)
	}
	off := int64(in.Offset)
	switch in.Whence {
	case unix.SEEK_DATA:
		data, ok := n.Map.SeekData(off)
		if !ok {
			return fuse.Status(unix.ENXIO)
		}
		out.Offset = uint64(data)
	case unix.SEEK_HOLE:
		out.Offset = uint64(n.Map.SeekHole(off))
	default:
		return fuse.EINVAL
	}
	return fuse.OK
}

// Flush and Fsync have nothing to write. After ENOSYS the kernel does not
// send either request again, and close and fsync succeed.
func (t *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (t *tree) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.ENOSYS }
