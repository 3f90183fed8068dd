package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// passing is the name under which this program calls itself to be a mount that does
// little else than passing a blob on: DIR URL SIZE KEEPING FILE. It knows that its reader
// wants all of it from the first READ on, answers from the memory that the bytes came
// into, trusts the link, and has no state.
const passing = "pass-blob"

// keeping is what such a mount does with the bytes beside answering.
type keeping string

const (
	keepNone   keeping = "none"
	keepAsIs   keeping = "write" // to FILE
	keepHashed keeping = "hash"  // and hash them before
)

const (
	passStep  = 4 << 20   // a request
	passPiece = 256 << 10 // what is hashed and written at a time
	passAhead = 64 << 20  // of the reader
)

func passBlob(dir, url, bytes string, k keeping, path string) error {
	size, err := strconv.ParseInt(bytes, 10, 64)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: bareRequests}}
	b := &passedBlob{client: client, url: url, size: size, keep: k, steps: map[int64]*passedStep{}}
	b.cond.L = &b.mu
	if k != keepNone {
		if b.file, err = os.Create(path); err != nil {
			return err
		}
		defer b.file.Close()
	}
	root := &passedRoot{blob: b}
	server, err := fs.Mount(dir, root, &fs.Options{MountOptions: fuse.MountOptions{
		Name: passing, MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, MaxBackground: 64, Options: []string{"ro"},
	}})
	if err != nil {
		return err
	}
	server.Wait()
	return nil
}

// passedBlob is a blob on its way.
type passedBlob struct {
	fs.Inode
	client *http.Client
	url    string
	size   int64
	keep   keeping
	file   *os.File
	start  sync.Once

	mu    sync.Mutex
	cond  sync.Cond
	steps map[int64]*passedStep // by offset: those that are not read
	next  int64                 // where the next request begins
	read  int64                 // up to where a reader has come
	free  [][]byte
	err   error
}

// passedStep is what one request brings.
type passedStep struct {
	data []byte
	have int // bytes that came
	left int // bytes that were not answered
}

// fetch is one of the connections.
func (b *passedBlob) fetch() {
	for {
		b.mu.Lock()
		for b.next < b.size && b.next-b.read >= passAhead {
			b.cond.Wait()
		}
		off := b.next
		n := min(passStep, b.size-off)
		if n <= 0 {
			b.mu.Unlock()
			return
		}
		b.next += n
		s := &passedStep{left: int(n)}
		if k := len(b.free) - 1; k >= 0 {
			s.data, b.free = b.free[k][:n], b.free[:k]
		} else {
			s.data = make([]byte, n, passStep)
		}
		b.steps[off] = s
		b.mu.Unlock()
		if err := b.bring(s, off); err != nil {
			b.mu.Lock()
			b.err = err
			b.cond.Broadcast()
			b.mu.Unlock()
			return
		}
	}
}

func (b *passedBlob) bring(s *passedStep, off int64) error {
	req, err := http.NewRequest(http.MethodGet, b.url, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(s.data))-1))
	resp, err := b.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s: %s", b.url, resp.Status)
	}
	for at, size := 0, len(s.data); at < size; {
		p := s.data[at:min(at+passPiece, size)]
		if _, err := io.ReadFull(resp.Body, p); err != nil {
			return err
		}
		if b.keep == keepHashed {
			sha256.Sum256(p)
		}
		if b.keep != keepNone {
			if _, err := b.file.WriteAt(p, off+int64(at)); err != nil {
				return err
			}
		}
		at += len(p)
		b.mu.Lock()
		s.have = at
		b.cond.Broadcast()
		b.mu.Unlock()
	}
	return nil
}

var (
	_ fs.NodeOpener    = (*passedBlob)(nil)
	_ fs.NodeReader    = (*passedBlob)(nil)
	_ fs.NodeGetattrer = (*passedBlob)(nil)
	_ fs.NodeOnAdder   = (*passedRoot)(nil)
)

func (b *passedBlob) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, uint64(b.size)
	return 0
}

func (b *passedBlob) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read answers from a step's memory, or copies what lies in two of them.
func (b *passedBlob) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	b.start.Do(func() {
		for range bareRequests {
			go b.fetch()
		}
	})
	n := min(int64(len(dest)), b.size-off)
	b.mu.Lock()
	defer b.mu.Unlock()
	if end := off + n; end > b.read {
		b.read = end
		b.cond.Broadcast()
	}
	answer := b.awaitLocked(off, n)
	if answer == nil {
		return nil, syscall.EIO
	}
	if int64(len(answer.data)) == n {
		return answer, 0
	}
	done := int64(0)
	for answer != nil {
		done += int64(copy(dest[done:], answer.data))
		answer.doneLocked()
		if done == n {
			return fuse.ReadResultData(dest[:n]), 0
		}
		answer = b.awaitLocked(off+done, n-done)
	}
	return nil, syscall.EIO
}

// awaitLocked waits for the bytes from off on that one step has, n at most. It
// returns nil if there will not be any.
func (b *passedBlob) awaitLocked(off, n int64) *passedAnswer {
	first := off / passStep * passStep
	n = min(n, first+passStep-off)
	end := int(off - first + n)
	for b.err == nil {
		s := b.steps[first]
		switch {
		case s == nil && b.next > first:
			return nil // it was read before
		case s != nil && s.have >= end:
			return &passedAnswer{b, s, first, s.data[end-int(n) : end]}
		}
		b.cond.Wait()
	}
	return nil
}

// passedAnswer is bytes of a step, whose memory is used again after the last.
type passedAnswer struct {
	blob *passedBlob
	step *passedStep
	at   int64
	data []byte
}

func (a *passedAnswer) Bytes([]byte) ([]byte, fuse.Status) { return a.data, fuse.OK }
func (a *passedAnswer) Size() int                          { return len(a.data) }

func (a *passedAnswer) Done() {
	a.blob.mu.Lock()
	defer a.blob.mu.Unlock()
	a.doneLocked()
}

func (a *passedAnswer) doneLocked() {
	b := a.blob
	if a.step.left -= len(a.data); a.step.left == 0 {
		delete(b.steps, a.at)
		b.free = append(b.free, a.step.data)
	}
}

// passedRoot has the blob as its only file.
type passedRoot struct {
	fs.Inode
	blob *passedBlob
}

const passedName = "blob"

func (r *passedRoot) OnAdd(ctx context.Context) {
	r.AddChild(passedName, r.NewPersistentInode(ctx, r.blob, fs.StableAttr{Mode: fuse.S_IFREG}), false)
}
