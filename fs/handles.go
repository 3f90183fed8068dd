package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// The handle table records which inode is open under which handle and in
// which mode, and the backing ids. A process that takes over a live mount
// cannot compute these, so the table has a fixed layout in one range of
// memory that can outlive its process. Numbers are in the machine's byte
// order: the table never leaves the machine.
//
//	header, 64 bytes
//	   0  magic "epochfsH"            8
//	   8  version, 1                  4
//	  12  number of files             4
//	  16  number of slots             4
//	  20  slots that were ever used      4
//	  24  zero
//	files, 16 bytes each; file i is inode 2+i
//	   0  open cached handles         4   the counts follow from the
//	   4  open direct handles         4   slots; a takeover computes
//	   8  open passthrough handles    4   them again
//	  12  backing id, 0 for none      4
//	slots, 32 bytes each
//	   0  state: 0 free, else mode    4   written last, cleared first
//	   4  generation                  4   counts this slot's uses
//	   8  unique of the OPEN          8   bit 63 cleared
//	  16  inode                       8
//	  24  backing id                  4
//	  28  zero
//
// A file handle is the slot's number with the slot's generation in the upper
// 32 bits. A RELEASE that is sent twice therefore cannot free the slot's
// next user, and an OPEN that is sent twice finds its slot by its unique.
const (
	tableMagic   = "epochfsH"
	tableVersion = 1
	headerSize   = 64
	fileSize     = 16
	slotSize     = 32

	// maxHandles bounds the open files of a mount: 2 MiB of table.
	// Further opens fail with ENFILE.
	maxHandles = 1 << 16

	// resent is the bit in a request's unique that marks a request sent
	// before, to a process that did not answer.
	resent = 1 << 63
)

// openMode is how the kernel reads through a handle.
type openMode uint32

const (
	free        openMode = iota // no handle
	cached                      // page cache, filled by READ
	direct                      // O_DIRECT: each read(2) is a READ
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

// Usage counts a file's open descriptions by mode. A mapping counts as open
// until it is unmapped, except in passthrough mode, in which it maps the
// backing file.
type Usage struct {
	Cached, Direct, Passthrough int
}

// handles is the table with indexes for fast lookup.
type handles struct {
	mu     sync.Mutex
	mem    []byte
	files  int
	slots  int
	unused []uint32          // free slots that were used before, the next one last
	used   uint32            // slots from here on were never used
	opens  map[uint64]uint32 // unique of an OPEN to its slot
}

// handlesSize returns the number of bytes of a table.
func handlesSize(files, slots int) int {
	return headerSize + files*fileSize + slots*slotSize
}

// openHandles initializes a table in mem if mem starts with zeros, and
// otherwise takes over the table in mem. mem must be aligned to 8 bytes.
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
		copy(mem, tableMagic) // last: a table without the magic is initialized again
	}
	if err := h.checkHeader(); err != nil {
		return nil, err
	}
	return h, h.index()
}

// checkTable returns the error with which openHandles would refuse to take
// over a table, without changing the table.
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

// index rebuilds the indexes and the counts from the slots.
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

// state returns a slot's first word. The word is stored atomically, so that
// it is never seen before the rest of its slot.
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

// find returns the handle of the OPEN with the given unique, if any.
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

// open writes a slot and returns its handle. ok is false if all slots are in
// use.
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

// takeSlot returns a free slot. A slot that was never used counts as used
// before its contents are written.
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

// get returns the open handle fh.
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

// release frees the handle fh. It returns false if fh is not open, because
// the same RELEASE has freed it before.
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

// usage returns a file's open handles and its backing id.
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

// setBacking records the id of a file's registered backing file, 0 for none.
func (h *handles) setBacking(ino uint64, id int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put32(h.fileAt(ino)+12, uint32(id))
}
