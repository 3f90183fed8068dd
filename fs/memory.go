package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The state that must survive the process of a mount is kept in a memfd,
// from which another process continues:
//
//	   0  magic "epochfsM"                8
//	   8  version, 1                      4
//	  12  major number of the mount       4
//	  16  minor number                    4
//	  20  length of the INIT request      4
//	  24  length of the INIT reply        4
//	  28  zero
//	  32  offset of the handle table      8
//	  40  length of the handle table      8
//	  48  offset of the note              8
//	  56  length of the note              8
//	  64  when a request's handler last   8   nanoseconds since boot
//	      panicked; 0: never
//	  72  zero
//	1024  INIT request, as the kernel sent it
//	2048  INIT reply, as it was sent
//	4096  handle table (handles.go), then the note: the owner's bytes
//
// Numbers are in the machine's byte order. A later version may add fields in
// place of zeros; a change to an existing field requires a new version.
const (
	memoryMagic   = "epochfsM"
	memoryVersion = 1
	memoryHeader  = 4096
	atRequest     = 1024
	atReply       = 2048
	mostInit      = 1024 // bytes of a request or reply
	atPanic       = 64
)

// MemoryName is the name of a mount's memory file in /proc.
const MemoryName = "epochfs mount"

// memory is a mount's memory file, mapped except for the note.
type memory struct {
	file  *os.File
	mem   []byte
	table []byte // part of mem
}

// newMemory creates a memory file with an empty table for the given number
// of files.
func newMemory(files int, note []byte) (*memory, error) {
	fd, err := unix.MemfdCreate(MemoryName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memory")
	table := handlesSize(files, maxHandles)
	at := (memoryHeader + table + memoryHeader - 1) / memoryHeader * memoryHeader
	if _, err := f.WriteAt(note, int64(at)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Truncate(int64(at + len(note))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m, err := mapMemory(f, memoryHeader, table)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	for off, v := range map[int]int{32: memoryHeader, 40: table, 48: at, 56: len(note)} {
		binary.NativeEndian.PutUint64(m.mem[off:], uint64(v))
	}
	binary.NativeEndian.PutUint32(m.mem[8:], memoryVersion)
	copy(m.mem, memoryMagic)
	return m, nil
}

func mapMemory(f *os.File, at, table int) (*memory, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, at+table, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &memory{file: f, mem: mem, table: mem[at : at+table]}, nil
}

// layout returns the positions of the table and the note in a memory file
// that another process has made. It refuses unknown versions.
func layout(f *os.File) (table, note [2]int, err error) {
	head := make([]byte, 72)
	info, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(head, 0)
	}
	if err != nil {
		return table, note, fmt.Errorf("the mount's memory: %w", err)
	}
	if v := binary.NativeEndian.Uint32(head[8:]); string(head[:8]) != memoryMagic || v != memoryVersion {
		return table, note, fmt.Errorf("the mount's memory has version %d, not %d", v, memoryVersion)
	}
	for i := range 2 {
		table[i] = int(binary.NativeEndian.Uint64(head[32+8*i:]))
		note[i] = int(binary.NativeEndian.Uint64(head[48+8*i:]))
	}
	size := int(info.Size())
	for _, p := range [][2]int{table, note} {
		if p[0] < memoryHeader || p[1] < 0 || p[0] > size || p[1] > size-p[0] {
			return table, note, errors.New("the mount's memory: offsets out of range")
		}
	}
	return table, note, nil
}

// openMemory maps a memory file that another process has made.
func openMemory(f *os.File) (*memory, error) {
	table, _, err := layout(f)
	if err != nil {
		return nil, err
	}
	m, err := mapMemory(f, table[0], table[1])
	if err != nil {
		return nil, err
	}
	for _, at := range []int{20, 24} {
		if n := m.get32(at); n == 0 || n > mostInit {
			m.close()
			return nil, errors.New("the mount's memory: no INIT in it")
		}
	}
	return m, nil
}

func (m *memory) close() {
	_ = unix.Munmap(m.mem)
	_ = m.file.Close()
}

func (m *memory) get32(at int) uint32    { return binary.NativeEndian.Uint32(m.mem[at:]) }
func (m *memory) put32(at int, v uint32) { binary.NativeEndian.PutUint32(m.mem[at:], v) }

func (m *memory) request() []byte { return m.mem[atRequest : atRequest+m.get32(20)] }
func (m *memory) reply() []byte   { return m.mem[atReply : atReply+m.get32(24)] }

// setInit records the INIT request and reply of the connection.
func (m *memory) setInit(request, reply []byte) error {
	if len(request) > mostInit || len(reply) > mostInit {
		return errors.New("INIT is larger than it can be")
	}
	copy(m.mem[atRequest:], request)
	copy(m.mem[atReply:], reply)
	m.put32(20, uint32(len(request)))
	m.put32(24, uint32(len(reply)))
	return nil
}

// setDevice records the mount's device number.
func (m *memory) setDevice(major, minor int) {
	m.put32(12, uint32(major))
	m.put32(16, uint32(minor))
}

func (m *memory) device() (major, minor int) { return int(m.get32(12)), int(m.get32(16)) }

// panicPause is how long after one panic the next does not end the process.
// A request that always panics is sent again to each new process: it fails
// within the pause instead of ending one process after the other.
const panicPause = 10 * time.Second

// panicked records a panic and reports whether the last one was long ago.
// The record outlives the process.
func (m *memory) panicked() bool {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return false
	}
	now, last := uint64(ts.Nano()), binary.NativeEndian.Uint64(m.mem[atPanic:])
	binary.NativeEndian.PutUint64(m.mem[atPanic:], now)
	return last == 0 || now-last > uint64(panicPause)
}

// Note returns the contents of Options.Note, which the owner of a mount
// leaves in the mount's memory for the process that takes over.
func Note(memory *os.File) ([]byte, error) {
	_, note, err := layout(memory)
	if err != nil {
		return nil, err
	}
	text := make([]byte, note[1])
	_, err = io.ReadFull(io.NewSectionReader(memory, int64(note[0]), int64(note[1])), text)
	return text, err
}
