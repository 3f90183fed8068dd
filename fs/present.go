package fs

import (
	"errors"
	"os"
	"reflect"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// present faults in the memory into which the kernel copies requests and
// from which it copies answers. The kernel takes a request off its queue
// before it copies the request, and counts an answer as given before it has
// copied all of the answer. If the copy must fault in a page, and the
// process is killed meanwhile, then the copy fails and the request with it:
// its caller gets EIO, although the next process could have answered.
//
// Memory that the process has just written is present. Memory that is not:
// buffers of 1 MiB fresh from the kernel, above all in a process that has
// just begun; and zeros, which are never written. Memory of the process's own
// would have to be written, because the kernel's shared zero page is looked up
// on the path that fails; pages of a file are present once they were read. A
// request is small and lies in the first two pages of its buffer.
func present(server *fuse.Server) error {
	pool, err := readPool(server)
	if err != nil {
		return err
	}
	zeros()
	fresh := pool.New
	pool.New = func() any {
		buf := fresh()
		if b, ok := buf.([]byte); ok {
			b[0], b[os.Getpagesize()] = 0, 0
		}
		return buf
	}
	return nil
}

// readPool returns the pool of buffers into which go-fuse reads requests.
func readPool(server *fuse.Server) (*sync.Pool, error) {
	field := reflect.ValueOf(server).Elem().FieldByName("readPool")
	if !field.IsValid() || field.Type() != reflect.TypeFor[sync.Pool]() {
		return nil, errors.New("go-fuse has its buffers elsewhere")
	}
	pool := (*sync.Pool)(field.Addr().UnsafePointer())
	if pool.New == nil {
		return nil, errors.New("go-fuse makes its buffers elsewhere")
	}
	return pool, nil
}
