package fs

import (
	"errors"
	"slices"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A mount can hand pages to the kernel before anybody reads them. A fault on
// such a page sends no READ at all. What is handed over goes into the page
// cache of the FUSE inode, so the inode must be known to the kernel, and the
// file not be open in passthrough: then the pages of the backing file count.
//
// A store waits for the lock of each page, as a drop does (notify.go), and
// keeps the same rules. Bytes that turn out to be wrong while they are on
// their way to the kernel must not arrive after the drop of their pages. So a
// range is marked as being stored before its bytes are read, and a drop that
// overlaps it is sent when it has arrived; a range that is to be dropped
// already is not stored.
//
// What a READ is being answered for comes with its answer, and is not stored:
// the store would wait for that answer.

const (
	// mostStoring bounds the stores being sent. Each takes a thread.
	mostStoring = 4
	// mostStored bounds the bytes of one store.
	mostStored = 256 << 10
	// lookupTries and lookupPause bound how long the kernel may take to make a
	// file known after the answer to its LOOKUP was sent.
	lookupTries = 20
	lookupPause = 500 * time.Microsecond
	// storeLinger is how long a thread waits for the next store.
	storeLinger = 100 * time.Millisecond
)

// notifyStore is the code of the notification that hands over pages.
const notifyStore = 4

// Errors of Store.
var (
	// ErrUnknown means that the kernel has not yet looked up the file. See
	// Mounted.Known.
	ErrUnknown = errors.New("the kernel does not know the file")
	// ErrNoRoom means that the memory of this process's cgroup is too full
	// for more pages.
	ErrNoRoom = errors.New("no memory for more pages")
	// ErrNotStored means that the pages are to be dropped, are no longer
	// there, or the mount has ended.
	ErrNotStored = errors.New("the pages were not stored")
)

// store is pages on their way to the kernel.
type store struct {
	ino  uint64
	off  int64
	data []byte
	done chan error // holds one
}

// Store hands the kernel the pages that lie within [off, off+n) of a file: the
// last page of a file is whole where the file ends. read fills p from an
// offset on, and reports false if it cannot at once. If the file is open in
// passthrough, or would be opened so, Store has the kernel read the pages of
// the backing file instead. Pages that a READ is being answered for come with
// its answer, and count as stored. Store blocks until the kernel has the pages.
// It may wait for a READ of them that has only just come, so no thread that
// answers READs calls it. It returns the number of bytes that were stored, and
// why the rest was not.
func (m *Mounted) Store(name string, off, n int64, read func(p []byte, off int64) bool) (stored int64, err error) {
	node := m.tree.byName[name]
	if node == nil {
		return 0, ErrNotStored
	}
	off, end := wholePages(off, n, node.Map.Size())
	if off >= end {
		return 0, nil
	}
	if m.tree.readAhead(node, off, end-off) {
		return 0, nil
	}
	tries := lookupTries
	for off < end {
		if !node.known.Load() {
			return stored, ErrUnknown
		}
		busy := node.reads.first(pageRange{off, end})
		if busy.off <= off {
			n := min(busy.end, end) - off
			off, stored = off+n, stored+n
			continue
		}
		part := min(busy.off-off, mostStored)
		if !m.room.take(part) {
			return stored, ErrNoRoom
		}
		node.filled()
		if err := m.notify.store(node.ino, pageRange{off, off + part}, read); err != nil {
			m.room.giveBack(part)
			if errors.Is(err, unix.ENOENT) && tries > 0 {
				tries--
				time.Sleep(lookupPause)
				continue
			}
			if errors.Is(err, unix.ENOENT) {
				node.known.Store(false)
				err = ErrUnknown
			}
			return stored, err
		}
		node.declined.served(off, part)
		off, stored = off+part, stored+part
	}
	return stored, nil
}

// wholePages returns the pages that lie within [off, off+n) of a file. A store
// beyond the end of the file would change the size that the kernel knows.
func wholePages(off, n, size int64) (start, end int64) {
	if off < 0 {
		n, off = n+off, 0
	}
	off = min(off, size)
	end = off + min(max(n, 0), size-off)
	start = (off + pageSize - 1) &^ (pageSize - 1)
	if end < size {
		end &^= pageSize - 1
	}
	return start, end
}

// readAhead has the kernel read pages of the backing file, if that is where
// readers of n read. It returns false if they do not.
func (t *tree) readAhead(n *node, off, length int64) bool {
	file, ok := n.Content.Backing()
	if !ok {
		return false
	}
	n.open.Lock()
	use, _ := t.handles.usage(n.ino)
	passes := use.Passthrough > 0 || use.Cached+use.Direct == 0 && t.backing.Load() && !n.noBacking
	n.open.Unlock()
	if passes {
		_ = unix.Fadvise(int(file.Fd()), off, length, unix.FADV_WILLNEED) // fails for anything but a file
	}
	return passes
}

// store reads a range and sends it to the kernel.
func (n *notifier) store(ino uint64, r pageRange, read func(p []byte, off int64) bool) error {
	if !n.mark(ino, r) {
		return ErrNotStored
	}
	s := &store{ino: ino, off: r.off, data: make([]byte, r.end-r.off), done: make(chan error, 1)}
	if !read(s.data, r.off) {
		n.stored(ino, r)
		return ErrNotStored
	}
	select {
	case n.stores <- s:
	case <-n.ended:
		n.stored(ino, r)
		return ErrNotStored
	}
	n.storeSoon()
	select {
	case err := <-s.done:
		n.stored(ino, r)
		return err
	case <-n.ended: // the sending thread, if there is one, ends with the connection
		return ErrNotStored
	}
}

// mark notes that a range is being stored, unless it is to be dropped, or
// another store of some of it is under way.
func (n *notifier) mark(ino uint64, r pageRange) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range []map[uint64][]pageRange{n.waiting, n.sending, n.storing} {
		if slices.ContainsFunc(other[ino], r.overlaps) {
			return false
		}
	}
	if n.closed {
		return false
	}
	n.storing[ino] = append(n.storing[ino], r)
	return true
}

// stored records that a store has ended, and has drops sent that waited for
// it.
func (n *notifier) stored(ino uint64, r pageRange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	remove(n.storing, ino, r)
	if len(n.waiting[ino]) > 0 && !n.closed {
		n.dropSoonLocked()
	}
}

// storeSoon starts a thread that sends stores, if there are more of these than
// threads that wait for one.
func (n *notifier) storeSoon() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.stores) > 0 && n.storers < mostStoring && !n.closed {
		n.storers++
		n.begun.Add(1)
		go n.begin(n.sendStores, n.failStores)
	}
}

// sendStores sends stores until none has come for a while.
func (n *notifier) sendStores(fd int) {
	idle := time.NewTimer(storeLinger)
	defer idle.Stop()
	for {
		select {
		case s := <-n.stores:
			s.done <- sendStore(fd, s)
			idle.Reset(storeLinger)
		case <-n.ended:
			return
		case <-idle.C:
			if n.storerEnds() {
				return
			}
			idle.Reset(storeLinger)
		}
	}
}

// storerEnds takes the calling thread from the count, unless a store has come
// meanwhile.
func (n *notifier) storerEnds() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.stores) > 0 {
		return false
	}
	n.storers--
	return true
}

// failStores fails the stores that wait, after the connection's descriptor
// could not be copied.
func (n *notifier) failStores(err error) {
	for !n.storerEnds() {
		select {
		case s := <-n.stores:
			s.done <- err
		default:
		}
	}
}

// sendStore writes FUSE_NOTIFY_STORE. It returns once the kernel has the
// pages.
func sendStore(fd int, s *store) error {
	var out struct {
		fuse.OutHeader
		fuse.NotifyStoreOut
	}
	head := unsafe.Slice((*byte)(unsafe.Pointer(&out)), int(unsafe.Sizeof(out)))
	out.OutHeader.Length = uint32(len(head) + len(s.data))
	out.OutHeader.Status = notifyStore
	out.Nodeid, out.Offset, out.Size = s.ino, uint64(s.off), uint32(len(s.data))
	_, err := unix.Writev(fd, [][]byte{head, s.data})
	return err
}
