package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// The handle table says which inode is open, in which mode, under which
// handle, and holds the backing ids. It is all that a process which
// takes over a live mount could not work out, so it has a fixed layout
// in one stretch of memory that can outlive its process. Numbers are in
// the machine's byte order: the table never leaves the machine.
//
//	header, 64 bytes
//	   0  magic "epochfsH"            8
//	   8  version, 1                  4
//	  12  number of files             4
//	  16  number of slots             4
//	  20  slots that were ever used      4
//	  24  zero
//	files, 16 bytes each; file i is inode 2+i
//	   0  open cached handles         4   counts follow from the slots
//	   4  open direct handles         4   and are made again from them
//	   8  open passthrough handles    4   by whoever takes over
//	  12  backing id, 0 for none      4
//	slots, 32 bytes each
//	   0  state: 0 free, else mode    4   written last, cleared first
//	   4  generation                  4   counts this slot's uses
//	   8  unique of the OPEN          8   bit 63 cleared
//	  16  inode                       8
//	  24  backing id                  4
//	  28  zero
//
// A file handle is the slot's number with its generation in the upper 32
// bits. So a RELEASE that is sent twice cannot free the slot's next user,
// and an OPEN that is sent twice finds its slot by its unique.
const (
	tableMagic   = "epochfsH"
	tableVersion = 1
	headerSize   = 64
	fileSize     = 16
	slotSize     = 32

	// maxHandles bounds the open files of a mount: 2 MiB of table. More
	// get ENFILE.
	maxHandles = 1 << 16

	// resent is the bit of a request's unique that says it was sent
	// before, to a process that did not answer it.
	resent = 1 << 63
)

// openMode is how the kernel reads through a handle.
type openMode uint32

const (
	free        openMode = iota // no handle
	cached                      // page cache, filled by READ
	direct                      // O_DIRECT: each read is a READ
	passthrough                 // the kernel reads the backing file
)

func (m openMode) String() string {
	return [...]string{"free", "cached", "direct", "passthrough"}[m]
}

// handle is one open file description.
type handle struct {
	fh      uint64
	ino     uint64
	mode    openMode
	backing int32 // id, for passthrough
}

// Usage is how often a file is open, by mode. A mapping counts as open
// until it is gone; one made in passthrough does not, for it is one of
// the backing file.
type Usage struct {
	Cached, Direct, Passthrough int
}

// handles is the table, and what makes it fast to use.
type handles struct {
	mu     sync.Mutex
	mem    []byte
	files  int
	slots  int
	unused []uint32          // free slots that were used, the next one last
	used   uint32            // slots from here on never were
	opens  map[uint64]uint32 // unique of an OPEN to its slot
}

// handlesSize is the memory a table needs.
func handlesSize(files, slots int) int {
	return headerSize + files*fileSize + slots*slotSize
}

// openHandles makes a table in mem if it is all zero at its start, else
// takes over the one that is there. mem must be aligned to 8 bytes.
func openHandles(mem []byte, files int) (*handles, error) {
	h := &handles{mem: mem, files: files, opens: make(map[uint64]uint32)}
	h.slots = (len(mem) - headerSize - files*fileSize) / slotSize
	if h.slots < 1 || uintptr(unsafe.Pointer(&mem[0]))%8 != 0 {
		return nil, errors.New("handle table: memory too small or not aligned")
	}
	if binary.NativeEndian.Uint64(mem) == 0 {
		h.put32(8, tableVersion)
		h.put32(12, uint32(files))
		h.put32(16, uint32(h.slots))
		copy(mem, tableMagic) // last: a table without it is made anew
	}
	if err := h.checkHeader(); err != nil {
		return nil, err
	}
	return h, h.index()
}

// checkTable says whether openHandles would take a table over, without
// touching it.
func checkTable(mem []byte, files int) error {
	h := &handles{mem: mem, files: files}
	h.slots = (len(mem) - headerSize - files*fileSize) / slotSize
	if h.slots < 1 {
		return errors.New("handle table: too small")
	}
	return h.checkHeader()
}

func (h *handles) checkHeader() error {
	v, files, slots, used := h.get32(8), h.get32(12), h.get32(16), h.get32(20)
	if string(h.mem[:8]) != tableMagic || v != tableVersion {
		return fmt.Errorf("handle table: not of version %d", tableVersion)
	}
	if int(files) != h.files || int(slots) > h.slots {
		return fmt.Errorf("handle table: it has %d files and %d slots, not %d and %d", files, slots, h.files, h.slots)
	}
	if used > slots {
		return fmt.Errorf("handle table: %d slots used of %d", used, slots)
	}
	h.slots, h.used = int(slots), used
	return nil
}

// index makes what is not in the table, and the counts, from the slots.
func (h *handles) index() error {
	for i := range h.files {
		at := h.fileAt(uint64(firstIno + i))
		clear(h.mem[at : at+12])
	}
	for i := int(h.used) - 1; i >= 0; i-- {
		s := uint32(i)
		hd, unique := h.load(s)
		switch {
		case hd.mode == free:
			h.unused = append(h.unused, s)
			continue
		case hd.mode > passthrough, hd.ino < firstIno, hd.ino-firstIno >= uint64(h.files):
			return fmt.Errorf("handle table: slot %d has mode %d and inode %d", i, hd.mode, hd.ino)
		}
		h.opens[unique] = s
		h.count(hd, 1)
	}
	return nil
}

func (h *handles) fileAt(ino uint64) int { return headerSize + int(ino-firstIno)*fileSize }

func (h *handles) slotAt(slot uint32) int {
	return headerSize + h.files*fileSize + int(slot)*slotSize
}

func (h *handles) get32(at int) uint32    { return binary.NativeEndian.Uint32(h.mem[at:]) }
func (h *handles) put32(at int, v uint32) { binary.NativeEndian.PutUint32(h.mem[at:], v) }

// state is a slot's first word. It is stored atomically, so that it is
// never seen before the rest of its slot.
func (h *handles) state(slot uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&h.mem[h.slotAt(slot)]))
}

func (h *handles) load(slot uint32) (hd handle, unique uint64) {
	at := h.slotAt(slot)
	return handle{
		fh:      uint64(h.get32(at+4))<<32 | uint64(slot),
		ino:     binary.NativeEndian.Uint64(h.mem[at+16:]),
		mode:    openMode(atomic.LoadUint32(h.state(slot))),
		backing: int32(h.get32(at + 24)),
	}, binary.NativeEndian.Uint64(h.mem[at+8:])
}

func (h *handles) count(hd handle, by int) {
	at := h.fileAt(hd.ino) + 4*int(hd.mode-cached)
	h.put32(at, h.get32(at)+uint32(by))
}

// find is the handle that the OPEN with this unique got, if it did.
func (h *handles) find(unique uint64) (handle, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.opens[unique&^resent]
	if !ok {
		return handle{}, false
	}
	hd, _ := h.load(s)
	return hd, true
}

// open writes a slot and returns its handle. It is false when all slots
// are taken.
func (h *handles) open(unique, ino uint64, mode openMode, backing int32) (hd handle, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	slot, ok := h.takeSlot()
	if !ok {
		return handle{}, false
	}
	unique &^= resent

	at := h.slotAt(slot)
	h.put32(at+4, h.get32(at+4)+1)
	binary.NativeEndian.PutUint64(h.mem[at+8:], unique)
	binary.NativeEndian.PutUint64(h.mem[at+16:], ino)
	h.put32(at+24, uint32(backing))
	atomic.StoreUint32(h.state(slot), uint32(mode))

	h.opens[unique] = slot
	hd, _ = h.load(slot)
	h.count(hd, 1)
	return hd, true
}

// takeSlot finds a free slot. One that was never used counts as used from
// here on, before anything is in it.
func (h *handles) takeSlot() (slot uint32, ok bool) {
	if n := len(h.unused); n > 0 {
		slot = h.unused[n-1]
		h.unused = h.unused[:n-1]
		return slot, true
	}
	if int(h.used) == h.slots {
		return 0, false
	}
	slot = h.used
	h.used++
	h.put32(20, h.used)
	return slot, true
}

// get is the open handle fh.
func (h *handles) get(fh uint64) (handle, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hd, _, ok := h.lookup(fh)
	return hd, ok
}

func (h *handles) lookup(fh uint64) (hd handle, unique uint64, ok bool) {
	slot := uint32(fh)
	if int(slot) >= h.slots {
		return handle{}, 0, false
	}
	hd, unique = h.load(slot)
	return hd, unique, hd.mode != free && hd.fh == fh
}

// release frees the handle fh. It is false where fh is not open: freed
// before, by the same RELEASE.
func (h *handles) release(fh uint64) (handle, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hd, unique, ok := h.lookup(fh)
	if !ok {
		return handle{}, false
	}
	atomic.StoreUint32(h.state(uint32(fh)), uint32(free))
	delete(h.opens, unique)
	h.unused = append(h.unused, uint32(fh))
	h.count(hd, -1)
	return hd, true
}

// usage counts a file's open handles and gives its backing id.
func (h *handles) usage(ino uint64) (u Usage, backing int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.fileAt(ino)
	return Usage{
		Cached:      int(h.get32(at)),
		Direct:      int(h.get32(at + 4)),
		Passthrough: int(h.get32(at + 8)),
	}, int32(h.get32(at + 12))
}

// setBacking notes the id under which a file's backing file is
// registered, 0 for none.
func (h *handles) setBacking(ino uint64, id int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put32(h.fileAt(ino)+12, uint32(id))
}
