package fs

import (
	"encoding/binary"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestBuffersArePresent takes more buffers than there is used memory for,
// and looks in /proc/self/pagemap whether a request would find them there.
func TestBuffersArePresent(t *testing.T) {
	tr, err := newTree(nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	request := make([]byte, unsafe.Sizeof(fuse.InitIn{}))
	in := (*fuse.InitIn)(unsafe.Pointer(&request[0]))
	in.Length, in.Opcode, in.Unique, in.Major, in.Minor = uint32(len(request)), 26, 2, 7, 38
	server, _, _, err := tr.negotiate(request)
	if err != nil {
		t.Fatal(err)
	}
	defer runtime.KeepAlive(server)
	pool, err := readPool(server)
	if err != nil {
		t.Fatal(err)
	}
	pages, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	for i := range 64 {
		buf := pool.Get().([]byte)
		for _, at := range []int{0, 300} { // the longest request is a LOOKUP's
			var entry [8]byte
			page := int64(uintptr(unsafe.Pointer(&buf[at]))) / int64(os.Getpagesize())
			if _, err := pages.ReadAt(entry[:], 8*page); err != nil {
				t.Fatal(err)
			}
			if binary.NativeEndian.Uint64(entry[:])>>63 == 0 {
				t.Fatalf("byte %d of buffer %d is not in memory", at, i)
			}
		}
	}
}
