package fs

import (
	"errors"
	"os"
	"reflect"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// present sees to it that the kernel finds memory where it copies requests
// to and answers from. It takes a request off its queue before it copies
// it, and an answer for given before it has all of it. When a page must be
// faulted in for that, and the process is killed meanwhile, the copy fails,
// and the request with it: EIO for whoever made it, where the next process
// would have been asked again. What the process has just written is there.
// What is not are buffers of 1 MiB, fresh from the kernel, above all in a
// process that has just begun; and zeros, which nobody writes: reading them
// would not do, for the kernel's own page of zeros is looked up on the way
// that fails. A request is small and lies in the first two pages.
func present(server *fuse.Server) error {
	pool, err := readPool(server)
	if err != nil {
		return err
	}
	clear(zeros[:])
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
