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
// and looks in /proc/self/pagemap whether a request would find them there;
// and whether an answer of zeros would.
func TestBuffersArePresent(t *testing.T) {
	tr, err := newTree(nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	server, _, _, err := tr.negotiate(initRequest(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer runtime.KeepAlive(server)
	pool, err := readPool(server)
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		buf := pool.Get().([]byte)
		isPresent(t, &buf[0])
		isPresent(t, &buf[300]) // the longest request is a LOOKUP's
	}
	for at := 0; at < maxRequest; at += os.Getpagesize() {
		isPresent(t, &zeros()[at])
		if zeros()[at] != 0 {
			t.Fatalf("byte %d of zeros is %d", at, zeros()[at])
		}
	}
}

// initRequest is an INIT as a kernel sends it that has all capabilities.
func initRequest() []byte {
	request := make([]byte, unsafe.Sizeof(fuse.InitIn{}))
	in := (*fuse.InitIn)(unsafe.Pointer(&request[0]))
	in.Length, in.Opcode, in.Unique, in.Major, in.Minor = uint32(len(request)), 26, 2, 7, 38
	in.Flags, in.Flags2 = ^uint32(0), ^uint32(0)
	return request
}

func isPresent(t *testing.T, p *byte) {
	t.Helper()
	pages, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	var entry [8]byte
	if _, err := pages.ReadAt(entry[:], int64(uintptr(unsafe.Pointer(p)))/int64(os.Getpagesize())*8); err != nil {
		t.Fatal(err)
	}
	if binary.NativeEndian.Uint64(entry[:])>>63 == 0 {
		t.Fatal("a page is not in memory")
	}
}
