package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// store puts the payload of piece i where it belongs in the data file and
// marks it present. verified says that a digest of the artifact vouches
// for it. An error means that the piece could not be kept, not that it is
// wrong; with errLooking comes what is closed when it can be tried again.
func (e *entry) store(i int, payload []byte, verified bool) (again <-chan struct{}, err error) {
	if e.unkept && readOnly(e.refused) {
		e.cache.notKept(e.file.Name, e.refused)
	}
	if e.unkept || e.isLost(i) {
		return nil, errNotKept
	}
	if e.state.verified(i) {
		return nil, nil // never written over: others may read it, and the kernel
	}
	again, err = e.cache.take(e.onDisk(i, int64(len(payload))))
	if err != nil {
		if errors.Is(err, errFull) {
			e.cache.notKept(e.file.Name, err)
		}
		return again, err
	}
	return nil, e.write(i, payload, verified)
}

// write is store when there is room.
func (e *entry) write(i int, payload []byte, verified bool) error {
	if err := e.state.reserve(i); err != nil {
		e.cache.noRoom()
		e.cache.notKept(e.file.Name, err)
		return err
	}
	off, _ := e.grid.extent(i)
	rest := payload
	for run := range e.file.Map.Payload(off, int64(len(payload))) {
		if _, err := e.data.WriteAt(rest[:run.Length], run.Offset); err != nil {
			e.cache.noRoom()
			e.cache.notKept(e.file.Name, err)
			return err
		}
		rest = rest[run.Length:]
		crashpoint.Reach("run written")
	}
	crashpoint.Reach("piece written")
	e.state.set(i, xxhash.Sum64(payload), verified)
	return nil
}

// errNotKept says that a piece is not put on disk.
var errNotKept = errors.New("the file takes no data")

// onDisk is how many bytes of blocks a piece of n bytes may take: a page
// at each end of each of its runs may be new.
func (e *entry) onDisk(i int, n int64) int64 {
	off, _ := e.grid.extent(i)
	var runs int64
	for range e.file.Map.Payload(off, n) {
		runs++
	}
	return n + runs*pageSize
}

// pageSize is the block size that file systems use, in general.
const pageSize = 4096

// load reads the payload of piece i from the data file into buf, which
// has the piece's length.
func (e *entry) load(i int, buf []byte) error {
	off, _ := e.grid.extent(i)
	return e.loadPayload(off, buf)
}

// loadPayload reads payload bytes from off on, whatever pieces they are in.
func (e *entry) loadPayload(off int64, buf []byte) error {
	for run := range e.file.Map.Payload(off, int64(len(buf))) {
		if _, err := e.readDisk(buf[:run.Length], run.Offset); err != nil {
			return err
		}
		buf = buf[run.Length:]
	}
	return nil
}

// readDisk fills p from the data file's offset off on.
func (e *entry) readDisk(p []byte, off int64) (int, error) {
	if e.cache == nil { // a Local
		return e.data.ReadAt(p, off)
	}
	return e.cache.opts.readDisk(e.data, p, off)
}

// recheck looks at the checksum of a piece from before the last boot. It
// reports whether the piece may be used.
func (e *entry) recheck(i int) bool {
	_, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	if err := e.load(i, buf); err != nil {
		e.notGivenBack(err)
		e.state.clear(i)
		return false
	}
	return e.state.settle(i, xxhash.Sum64(buf))
}

// checkPiece compares a piece's payload with its own digest, where it has
// one or has been found to have. verified is false where there is none.
func (e *entry) checkPiece(i int, payload []byte) (verified bool, err error) {
	want, ok := e.grid.sum(i)
	if !ok {
		if want, ok = e.vouchedFor(i); !ok {
			return false, nil
		}
	}
	if sha256.Sum256(payload) != want {
		off, n := e.grid.extent(i)
		return false, e.wrong(e.grid.part(i), fmt.Sprintf("piece at %d, %d bytes", off, n))
	}
	return true, nil
}

// wrong makes the error for bytes that their digest does not vouch for.
func (e *entry) wrong(part int, what string) *contentError {
	return &contentError{error: fmt.Errorf("%q, blob %s, %s: digest does not agree: %w",
		e.file.Name, e.file.Parts[part].Digest, what, layout.ErrContent)}
}

// contentError is an error of the bytes, not of the way to them.
type contentError struct {
	error
	elsewhere bool // the source knows another place to try
	all       bool // a blob is wrong as a whole, and nobody knows where
}

func (e *contentError) Unwrap() error { return e.error }

// buffers are reused by size class: powers of two from 64 KiB to 32 MiB.
const (
	smallestBuffer = 16 // log2
	largestBuffer  = 25
)

var bufferPools [largestBuffer - smallestBuffer + 1]sync.Pool

func bufferClass(n int64) int {
	c := 0
	for c < len(bufferPools) && int64(1)<<(c+smallestBuffer) < n {
		c++
	}
	return c
}

// getBuffer returns a buffer of n bytes whose content is anything.
func getBuffer(n int64) []byte {
	c := bufferClass(n)
	if c == len(bufferPools) {
		return make([]byte, n)
	}
	if b, ok := bufferPools[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, int64(1)<<(c+smallestBuffer))
}

func putBuffer(b []byte) {
	if c := bufferClass(int64(cap(b))); c < len(bufferPools) && cap(b) == 1<<(c+smallestBuffer) {
		bufferPools[c].Put(&b)
	}
}
