package fs

import (
	"errors"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroBlock is the length of the memory behind zeros, in bytes.
const zeroBlock = 64 << 10

// zeros returns maxRequest bytes that answer reads of holes from the processor's
// cache, without a call to Content. They are one block of memory, mapped again
// and again, because every process of every mount has them. All of them are
// present.
var zeros = sync.OnceValue(func() []byte {
	all, err := mapZeros()
	if err != nil {
		all = make([]byte, maxRequest)
		clear(all)
	}
	return all
})

// mapZeros maps a file of zeroBlock bytes over and over. The mapping is never
// undone.
func mapZeros() ([]byte, error) {
	fd, err := unix.MemfdCreate("epochfs zeros", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, zeroBlock); err != nil {
		return nil, err
	}
	all, err := unix.Mmap(-1, 0, maxRequest, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	for at := 0; at < maxRequest; at += zeroBlock {
		_, err := unix.MmapPtr(fd, 0, unsafe.Pointer(&all[at]), zeroBlock, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			return nil, err
		}
	}
	sum := byte(0)
	for at := 0; at < maxRequest; at += os.Getpagesize() {
		sum |= all[at] // faults the page in
	}
	if sum != 0 {
		return nil, errors.New("a new file is not empty")
	}
	return all, nil
}
