package fs

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Notifications are messages that a mount sends to the kernel without a
// request. The kernel takes the lock of each page that a notification
// concerns, and a page stays locked until the READ that fills it is
// answered. So a notification can wait for an answer of this very process,
// and if the registry does not answer it can wait for ever. Hence:
//
//   - No notification is sent by a thread that answers requests, or by the
//     caller.
//   - No lock is held while a notification is sent.
//   - At most mostNotifying are sent at a time, and mostStoring stores; the
//     rest of the drops wait in a bounded queue, and stores in who stores.
//   - The threads that send hold no descriptor except the connection's
//     (detach.go). If the process is killed and a sending thread stays in the
//     kernel, the locks of cached files and the keeper's socket are released
//     all the same.
//
// A thread that a killed process leaves in the kernel ends when the next
// process answers the READ. The keeper does not wait for such threads.

const (
	// mostNotifying bounds the notifications being sent. Each takes a
	// thread.
	mostNotifying = 8
	// mostOfFile bounds the notifications being sent for one file.
	mostOfFile = 4
	// mostRanges bounds the queued ranges of a file. Further ranges
	// merge all into one: the whole file.
	mostRanges = 64
)

// notifyInvalInode is the code of the notification that drops cached pages.
const notifyInvalInode = 2

// pageRange is a range of a file's pages, in bytes. If end is 0 the range
// reaches to the end of the file, whatever its length.
type pageRange struct{ off, end int64 }

// wholeFile is the range of a whole file.
var wholeFile = pageRange{}

func (r pageRange) contains(o pageRange) bool {
	return r.off <= o.off && (r.end == 0 || o.end != 0 && o.end <= r.end)
}

func (r pageRange) overlaps(o pageRange) bool {
	return (o.end == 0 || r.off < o.end) && (r.end == 0 || o.off < r.end)
}

// notifier asks the kernel to drop cached pages, and hands it pages (store.go).
type notifier struct {
	device int // the connection's descriptor, open until close returns
	// failed is called, on a goroutine of its own, with a notification
	// that could not be sent or was refused.
	failed func(ino uint64, err error)

	mu      sync.Mutex
	queue   []uint64               // inodes with queued ranges, the next one first
	waiting map[uint64][]pageRange // queued ranges by inode
	sending map[uint64][]pageRange // ranges being sent, by inode
	storing map[uint64][]pageRange // ranges being stored, by inode
	wrong   map[uint64][]pageRange // ranges of which wrong bytes were dropped, by inode
	running int                    // threads that drop
	storers int                    // threads that store
	closed  bool
	begun   sync.WaitGroup // threads without a descriptor of their own yet

	stores chan *store   // to be sent
	ended  chan struct{} // closed by close
}

func newNotifier(device int, failed func(ino uint64, err error)) *notifier {
	return &notifier{
		device: device, failed: failed,
		waiting: map[uint64][]pageRange{}, sending: map[uint64][]pageRange{},
		storing: map[uint64][]pageRange{}, wrong: map[uint64][]pageRange{},
		stores: make(chan *store, mostStoring), ended: make(chan struct{}),
	}
}

// forget drops the pages of a range, whose bytes were found wrong, and notes
// it for dropAgain. It returns at once.
func (n *notifier) forget(ino uint64, r pageRange) {
	n.mu.Lock()
	n.wrong[ino] = addRange(n.wrong[ino], r)
	n.mu.Unlock()
	n.drop(ino, r)
}

// dropAgain drops once more all that forget has dropped.
func (n *notifier) dropAgain() {
	n.mu.Lock()
	wrong := maps.Clone(n.wrong)
	n.mu.Unlock()
	for ino, ranges := range wrong {
		for _, r := range ranges {
			n.drop(ino, r)
		}
	}
}

// drop asks the kernel to drop the pages of a range of a file. It returns at
// once.
func (n *notifier) drop(ino uint64, r pageRange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	if len(n.waiting[ino]) == 0 {
		n.queue = append(n.queue, ino)
	}
	n.waiting[ino] = addRange(n.waiting[ino], r)
	if n.freeLocked(ino, r) {
		n.dropSoonLocked()
	}
}

// dropSoonLocked starts a thread that sends what is queued, if one may start.
func (n *notifier) dropSoonLocked() {
	if n.running < mostNotifying {
		n.running++
		n.begun.Add(1)
		go n.begin(n.send, n.give)
	}
}

// crowded reports whether so many ranges of a file are queued that further ones
// might merge with all of it.
func (n *notifier) crowded(ino uint64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.waiting[ino]) >= mostRanges/2
}

// addRange adds a range to the queued ones unless one of them contains it.
func addRange(all []pageRange, r pageRange) []pageRange {
	for _, a := range all {
		if a.contains(r) {
			return all
		}
	}
	if r == wholeFile || len(all) == mostRanges {
		return []pageRange{wholeFile}
	}
	return append(all, r)
}

// begin starts a thread that calls send with a descriptor of the connection,
// or calls give if there is none.
func (n *notifier) begin(send func(fd int), give func(error)) {
	defer n.begun.Done()
	fd, err := unix.FcntlInt(uintptr(n.device), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		give(err)
		return
	}
	if onDetachedThread(fd, func() { send(fd) }) {
		_ = unix.Close(fd) // the thread has its own
	}
}

// give drops the queue after the connection's descriptor could not be
// copied.
func (n *notifier) give(err error) {
	for {
		ino, r, ok := n.take()
		if !ok {
			return
		}
		n.failed(ino, err)
		n.sent(ino, r)
	}
}

// send sends queued notifications.
func (n *notifier) send(fd int) {
	for {
		ino, r, ok := n.take()
		if !ok {
			return
		}
		// On ENOENT the kernel does not know the file and has no pages of
		// it.
		if err := sendInvalidation(fd, ino, r); err != nil && !errors.Is(err, unix.ENOENT) {
			go n.failed(ino, err) // on another thread: the log's descriptor may not be open on this one
		}
		n.sent(ino, r)
	}
}

// take returns the next range to send. If there is none, ok is false and the
// calling thread is no longer counted.
func (n *notifier) take() (ino uint64, r pageRange, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, ino := range n.queue {
		at := slices.IndexFunc(n.waiting[ino], func(r pageRange) bool { return n.freeLocked(ino, r) })
		if at < 0 {
			continue
		}
		r := n.waiting[ino][at]
		n.waiting[ino] = slices.Delete(n.waiting[ino], at, at+1)
		n.queue = slices.Delete(n.queue, i, i+1)
		if len(n.waiting[ino]) > 0 { // let other files go first
			n.queue = append(n.queue, ino)
		} else {
			delete(n.waiting, ino)
		}
		n.sending[ino] = append(n.sending[ino], r)
		return ino, r, true
	}
	n.running--
	return 0, r, false
}

// freeLocked reports whether a range can be sent now. Two overlapping ranges
// would wait for the same page, so the thread that sends the first takes the
// second next. A range that overlaps one being stored is sent after that: what
// is being stored may be what is to be dropped.
func (n *notifier) freeLocked(ino uint64, r pageRange) bool {
	sending := n.sending[ino]
	return len(sending) < mostOfFile && !slices.ContainsFunc(sending, r.overlaps) && !slices.ContainsFunc(n.storing[ino], r.overlaps)
}

// sent records that the kernel has answered, and makes the ranges that
// waited for the answer available.
func (n *notifier) sent(ino uint64, r pageRange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	remove(n.sending, ino, r)
}

func remove(all map[uint64][]pageRange, ino uint64, r pageRange) {
	ranges := all[ino]
	at := slices.Index(ranges, r)
	if ranges = slices.Delete(ranges, at, at+1); len(ranges) > 0 {
		all[ino] = ranges
	} else {
		delete(all, ino)
	}
}

// close drops the queue. It does not wait for notifications being sent: they
// end with the connection.
func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	n.queue = nil
	clear(n.waiting)
	n.mu.Unlock()
	close(n.ended)
	n.begun.Wait()
}

// sendInvalidation writes FUSE_NOTIFY_INVAL_INODE. It returns once the
// kernel has dropped the pages.
func sendInvalidation(fd int, ino uint64, r pageRange) error {
	var out struct {
		fuse.OutHeader
		fuse.NotifyInvalInodeOut
	}
	out.OutHeader.Length = uint32(unsafe.Sizeof(out))
	out.OutHeader.Status = notifyInvalInode
	out.Ino, out.Off = ino, r.off
	if r.end != 0 {
		out.NotifyInvalInodeOut.Length = r.end - r.off
	}
	_, err := unix.Write(fd, unsafe.Slice((*byte)(unsafe.Pointer(&out)), int(unsafe.Sizeof(out))))
	return err
}

// pagesOf returns the range of whole pages that contain the bytes [off,
// off+size); size 0 means all bytes from off on. The range is cut off at the
// end of the file.
func pagesOf(off, size, fileSize int64) (r pageRange, ok bool) {
	page := int64(os.Getpagesize())
	end := fileSize
	if size > 0 && size < fileSize-off {
		end = off + size
	}
	off = max(0, off)
	if off >= end {
		return r, false
	}
	r.off = off &^ (page - 1)
	if end < fileSize {
		r.end = (end + page - 1) &^ (page - 1)
	}
	return r, true
}
