package fs

import (
	"errors"
	"os"
	"slices"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Notifications are what a mount tells the kernel without being asked. The
// kernel takes the lock of each page that one is about, and a page is locked
// for as long as the READ that fills it is not answered. So a notification
// can wait for an answer of this very process, and for a registry that does
// not answer it can wait for ever. Hence:
//
//   - none is sent by a thread that answers requests, nor by the caller;
//   - no lock is held while one is sent;
//   - at most mostNotifying are sent at a time; the rest waits in a queue of
//     bounded length;
//   - the threads that send them hold no descriptor but the connection's
//     (detach.go): when the process is killed, and one of them stays in the
//     kernel, the locks of cached files and the keeper's socket go all the same.
//
// What a killed process leaves in the kernel ends when the next one answers
// the READ. The keeper does not wait for it.

const (
	// mostNotifying bounds the notifications that are being sent. Each is a
	// thread.
	mostNotifying = 8
	// mostOfFile is how many of them may be about one file.
	mostOfFile = 4
	// mostRanges bounds the ranges of a file that wait to be sent. More
	// become one: the whole file.
	mostRanges = 64
)

// notifyInvalInode is the code of the notification that drops pages.
const notifyInvalInode = 2

// pageRange is a range of a file's pages, in bytes. end 0 is the end of the
// file, however long it is.
type pageRange struct{ off, end int64 }

// wholeFile is all of a file.
var wholeFile = pageRange{}

func (r pageRange) contains(o pageRange) bool {
	return r.off <= o.off && (r.end == 0 || o.end != 0 && o.end <= r.end)
}

func (r pageRange) overlaps(o pageRange) bool {
	return (o.end == 0 || r.off < o.end) && (r.end == 0 || o.off < r.end)
}

// notifier has the kernel drop pages.
type notifier struct {
	device int // the connection's descriptor, open until close returns
	// failed is called, on a goroutine of its own, for a notification that
	// could not be sent or was refused.
	failed func(ino uint64, err error)

	mu      sync.Mutex
	queue   []uint64               // inodes that ranges wait of, the next one first
	waiting map[uint64][]pageRange // by inode
	sending map[uint64][]pageRange // by inode
	running int                    // threads
	closed  bool
	begun   sync.WaitGroup // threads that do not have a descriptor of their own yet
}

func newNotifier(device int, failed func(ino uint64, err error)) *notifier {
	return &notifier{device: device, failed: failed, waiting: map[uint64][]pageRange{}, sending: map[uint64][]pageRange{}}
}

// drop has the kernel drop the pages of a range of a file. It returns at
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
	if n.running < mostNotifying && n.freeLocked(ino, r) {
		n.running++
		n.begun.Add(1)
		go n.begin()
	}
}

// addRange adds a range to those that wait, unless it is in one of them.
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

// begin starts a thread that sends what waits, and ends when nothing does.
func (n *notifier) begin() {
	defer n.begun.Done()
	fd, err := unix.FcntlInt(uintptr(n.device), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		n.give(err)
		return
	}
	if onDetachedThread(fd, func() { n.send(fd) }) {
		_ = unix.Close(fd) // the thread has its own
	}
}

// give gives up what waits, for want of a descriptor.
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

// send sends what waits.
func (n *notifier) send(fd int) {
	for {
		ino, r, ok := n.take()
		if !ok {
			return
		}
		// ENOENT: the kernel does not know the file, and has no pages of it.
		if err := sendInvalidation(fd, ino, r); err != nil && !errors.Is(err, unix.ENOENT) {
			go n.failed(ino, err) // not here: the log's descriptor may not be open on this thread
		}
		n.sent(ino, r)
	}
}

// take returns the next range to be sent. ok is false when there is none; the
// thread that asked is then no longer counted.
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
		if len(n.waiting[ino]) > 0 { // other files first
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

// freeLocked reports whether a range can be sent now. Two that overlap would
// wait for the same page: the thread that sends the one takes the other next.
func (n *notifier) freeLocked(ino uint64, r pageRange) bool {
	sending := n.sending[ino]
	return len(sending) < mostOfFile && !slices.ContainsFunc(sending, r.overlaps)
}

// sent notes that the kernel has answered. The thread goes on with what had
// to wait for that.
func (n *notifier) sent(ino uint64, r pageRange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sending := n.sending[ino]
	at := slices.Index(sending, r)
	if sending = slices.Delete(sending, at, at+1); len(sending) > 0 {
		n.sending[ino] = sending
	} else {
		delete(n.sending, ino)
	}
}

// close forgets what waits. It does not wait for what is being sent: that
// ends with the connection.
func (n *notifier) close() {
	n.mu.Lock()
	n.closed = true
	n.queue = nil
	clear(n.waiting)
	n.mu.Unlock()
	n.begun.Wait()
}

// sendInvalidation writes FUSE_NOTIFY_INVAL_INODE. It returns when the kernel
// has dropped the pages.
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

// pagesOf is the range of whole pages that bytes [off, off+size) are in; size
// 0 is for all that follows. What is beyond the end of the file is cut off.
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
