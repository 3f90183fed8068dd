package fs

import (
	"errors"
	"os"
	"reflect"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// presentBuffers makes the server read requests only into memory that is
// there. The kernel takes a request off its queue before it copies it into
// the reader's buffer. When that has to be faulted in, and the process is
// killed meanwhile, the copy fails, and the request with it: EIO for
// whoever made it, where the next process would have been asked again.
// Buffers of 1 MiB are fresh from the kernel, and untouched, above all in
// a process that has just begun. A request is small and lies in the first
// two pages.
func presentBuffers(server *fuse.Server) error {
	pool, err := readPool(server)
	if err != nil {
		return err
	}
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

// readPool is where go-fuse has the buffers that it reads requests into.
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
