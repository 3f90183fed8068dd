package fs

import (
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The kernel reads more than a reader touches: up to 2 MiB around a fault. A
// READ of several pages that is answered with an error does no harm: whoever
// wants one of the pages has the kernel ask for it again, by itself. Only the
// error of a READ for a single page reaches a reader. So a mount can decline
// what was asked for on speculation.
//
// That is not so of direct READs, whose error is the reader's. A kernel with
// large pages or folios may ask again with more than one page. Hence the rule:
// a READ may be declined if it is larger than a page, without LOCKOWNER and
// O_DIRECT, on a cached handle, from no sequential reader, and if none of its
// pages was declined before and not served since. A test at the start
// (tryreads.go) shows whether the kernel plays along at all.
//
// Declining saves the network and not the memory: the kernel keeps the empty
// pages of a window. Repair drops them.

const (
	// declinedBlock is how many pages one block of notes is about: a window
	// of 2 MiB.
	declinedBlock = 512
	// mostDeclined bounds the blocks of a file: 1 MiB of memory, or 32 GiB
	// of a file. Beyond it nothing is declined.
	mostDeclined = 1 << 14
	// sequentialLeast is how many bytes in a row make a sequential reader.
	sequentialLeast = 64 << 10
	// trackedReaders is how many readers of a file are told apart.
	trackedReaders = 4
)

// pageSize is the kernel's.
var pageSize = int64(os.Getpagesize())

// declines reports whether a READ of n is declined.
func (t *tree) declines(n *node, in *fuse.ReadIn) bool {
	if !kernelAsksAgain.Load() || int64(in.Size) <= pageSize || in.ReadFlags&fuse.READ_LOCKOWNER != 0 || in.Flags&unix.O_DIRECT != 0 {
		return false
	}
	off := int64(in.Offset)
	end := min(off+int64(in.Size), n.Map.Size())
	if h, ok := t.handles.get(in.Fh); !ok || h.mode != cached || n.readers.sequential(off) {
		return false
	}
	if !t.recorded.active() && (t.decline == nil || !t.decline(n.Name, off, end-off)) || !n.declined.take(off, end-off) {
		return false
	}
	t.declinedReads.Add(1)
	return true
}

// declined notes the pages of a file that were declined and not served since.
type declined struct {
	some atomic.Bool // whether there are any

	mu     sync.Mutex
	blocks map[int64]*[declinedBlock / 64]uint64 // by number; a bit for each page
}

// take notes the pages of [off, off+n), unless one of them is noted already.
func (d *declined) take(off, n int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, end := off/pageSize, (off+n+pageSize-1)/pageSize
	if len(d.blocks)+int((end-first)/declinedBlock)+2 > mostDeclined {
		return false
	}
	for page := first; page < end; page++ {
		if d.hasLocked(page) {
			return false
		}
	}
	if d.blocks == nil {
		d.blocks = map[int64]*[declinedBlock / 64]uint64{}
	}
	for page := first; page < end; page++ {
		b := d.blocks[page/declinedBlock]
		if b == nil {
			b = new([declinedBlock / 64]uint64)
			d.blocks[page/declinedBlock] = b
		}
		b[page%declinedBlock/64] |= 1 << (page % 64)
	}
	d.some.Store(true)
	return true
}

func (d *declined) hasLocked(page int64) bool {
	b := d.blocks[page/declinedBlock]
	return b != nil && b[page%declinedBlock/64]&(1<<(page%64)) != 0
}

// has reports whether the page at off is noted.
func (d *declined) has(off int64) bool {
	if !d.some.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hasLocked(off / pageSize)
}

// runs returns the pages that are noted, as ascending ranges of bytes.
func (d *declined) runs() (all []pageRange) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, at := range slices.Sorted(maps.Keys(d.blocks)) {
		for page := at * declinedBlock; page < (at+1)*declinedBlock; page++ {
			if !d.hasLocked(page) {
				continue
			}
			if n := len(all); n > 0 && all[n-1].end == page*pageSize {
				all[n-1].end += pageSize
			} else {
				all = append(all, pageRange{page * pageSize, (page + 1) * pageSize})
			}
		}
	}
	return all
}

// repairPause is how long Repair waits between two looks at the queue.
const repairPause = time.Millisecond

// Repair drops the empty pages that the kernel keeps of what was declined of a
// file, so that a later reader does not have to ask for them one by one. It
// blocks until the drops are queued, or the mount ends.
func (m *Mounted) Repair(name string) {
	node := m.tree.byName[name]
	if node == nil {
		return
	}
	for _, r := range node.declined.runs() {
		for m.notify.crowded(node.ino) {
			select {
			case <-m.notify.ended:
				return
			case <-time.After(repairPause):
			}
		}
		m.notify.drop(node.ino, r)
	}
}

// served takes the pages of [off, off+n) from the notes.
func (d *declined) served(off, n int64) {
	if !d.some.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for page, end := off/pageSize, (off+n+pageSize-1)/pageSize; page < end; page++ {
		d.dropLocked(page)
	}
	d.some.Store(len(d.blocks) > 0)
}

func (d *declined) dropLocked(page int64) {
	b := d.blocks[page/declinedBlock]
	if b == nil {
		return
	}
	if b[page%declinedBlock/64] &^= 1 << (page % 64); *b == ([declinedBlock / 64]uint64{}) {
		delete(d.blocks, page/declinedBlock)
	}
}

// readers recognizes sequential readers of a file.
type readers struct {
	mu    sync.Mutex
	clock uint64
	seen  [trackedReaders]struct {
		next, run int64 // where the reader reads on, and bytes in a row
		used      uint64
	}
}

// served notes a READ that was answered.
func (r *readers) served(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	at := 0
	for i, s := range r.seen {
		if s.used > 0 && s.next == off {
			at = i
			break
		}
		if s.used < r.seen[at].used {
			at = i
		}
	}
	s := &r.seen[at]
	if s.next != off {
		s.run = 0
	}
	s.next, s.run, s.used = off+n, s.run+n, r.clock
}

// sequential reports whether a READ at off is that of a reader that reads on:
// the kernel may swap two of its READs, or leave one out.
func (r *readers) sequential(off int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.seen {
		if s.run >= sequentialLeast && off >= s.next-maxRequest && off <= s.next+maxRequest {
			return true
		}
	}
	return false
}
