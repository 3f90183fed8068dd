package fs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// helpDrop has the kernel drop its pages of a file.
func helpDrop(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// through hashes what send writes to a pipe until it has sent all of a file.
func through(path string, send func(pipe, file int) (int, error)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		defer w.Close()
		for {
			n, err := send(int(w.Fd()), int(f.Fd()))
			if err != nil || n == 0 {
				failed <- err
				return
			}
		}
	}()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if err := <-failed; err != nil {
		return err
	}
	fmt.Printf("%x\n", h.Sum(nil))
	return nil
}

func helpSendfile(args []string) error {
	return through(args[0], func(pipe, file int) (int, error) { return unix.Sendfile(pipe, file, nil, 1<<20) })
}

func helpSplice(args []string) error {
	return through(args[0], func(pipe, file int) (int, error) {
		n, err := unix.Splice(file, nil, pipe, nil, 1<<20, 0)
		return int(n), err
	})
}

// helpPopulate maps a file and has the kernel read all of it at once.
func helpPopulate(args []string) error {
	b, _, err := mapFile(args[0])
	if err != nil {
		return err
	}
	if err := unix.Madvise(b, unix.MADV_POPULATE_READ); err != nil {
		return err
	}
	fmt.Printf("%x\n", sha256.Sum256(b))
	return nil
}

func helpUring(args []string) error       { return readByUring(args[0], 0) }
func helpUringDirect(args []string) error { return readByUring(args[0], unix.O_DIRECT) }

// uringParams is struct io_uring_params.
type uringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	_                                                                  [3]uint32
	sq                                                                 struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// submission is struct io_uring_sqe, as far as a read needs it.
type submission struct {
	opcode, flags uint8
	prio          uint16
	fd            int32
	off, addr     uint64
	length, rw    uint32
	data          uint64
	_             [3]uint64
}

// readByUring reads a file by io_uring, eight requests at a time.
func readByUring(path string, flags int) error {
	const depth, size, opRead = 8, 256 << 10, 22
	var p uringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, depth, uintptr(unsafe.Pointer(&p)), 0)
	if errno == unix.ENOSYS || errno == unix.EPERM {
		fmt.Println("unsupported")
		return nil
	}
	if errno != 0 {
		return errno
	}
	ring, err := unix.Mmap(int(fd), 0, int(max(p.sq.array+4*p.sqEntries, p.cq.cqes+16*p.cqEntries)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	entries, err := unix.Mmap(int(fd), 0x10000000, int(p.sqEntries)*64, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	buf, err := unix.Mmap(-1, 0, depth*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	file, err := unix.Open(path, unix.O_RDONLY|flags, 0)
	if err != nil {
		return err
	}
	word := func(at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&ring[at])) }
	h := sha256.New()
	for off := uint64(0); ; off += depth * size {
		tail := atomic.LoadUint32(word(p.sq.tail))
		for i := range uint32(depth) {
			slot := (tail + i) & *word(p.sq.mask)
			*(*submission)(unsafe.Pointer(&entries[slot*64])) = submission{
				opcode: opRead, fd: int32(file), off: off + uint64(i)*size, addr: uint64(uintptr(unsafe.Pointer(&buf[i*size]))), length: size, data: uint64(i),
			}
			*word(p.sq.array + 4*slot) = slot
		}
		atomic.StoreUint32(word(p.sq.tail), tail+depth)
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, depth, depth, 1, 0, 0); errno != 0 {
			return errno
		}
		var got [depth]int32
		head := atomic.LoadUint32(word(p.cq.head))
		for range depth {
			at := p.cq.cqes + 16*(head&*word(p.cq.mask))
			got[*(*uint64)(unsafe.Pointer(&ring[at]))] = *(*int32)(unsafe.Pointer(&ring[at+8]))
			head++
		}
		atomic.StoreUint32(word(p.cq.head), head)
		for i, n := range got {
			if n < 0 {
				return unix.Errno(-n)
			}
			h.Write(buf[i*size : i*size+int(n)])
			if n < size {
				if n == 0 && i == 0 && off == 0 {
					return errors.New("nothing was read")
				}
				fmt.Printf("%x\n", h.Sum(nil))
				runtime.KeepAlive(buf)
				return nil
			}
		}
	}
}
