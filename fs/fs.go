// Package fs serves the files of a snapshot as a read-only FUSE mount.
//
// The tree is one directory of regular files that never change, so all that
// the kernel caches is fixed: the root is inode 1, the files are inodes 2,
// 3, … in the given order, and directory offsets are positions in that
// order. The kernel may cache names and attributes for hours, and it keeps
// the page cache across opens. A process that takes over a mount computes
// the same numbers; the handle table (handles.go) holds the only state that
// cannot be computed.
//
// A file whose bytes are complete on disk is opened in passthrough mode: the
// kernel then reads the backing file itself.
//
// A process that uses its own mount can deadlock, because Go may block the
// thread that should answer. Use the mount from other processes only.
package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// ErrNoFUSE is wrapped by errors that report that FUSE is unavailable on
// this machine or to this user: the device or the helper is missing or
// forbidden. The error's text names the cause.
var ErrNoFUSE = errors.New("FUSE is not available")

// Content provides a file's bytes. Its methods are called concurrently. The
// mount never closes a Content: its owner may after Mounted.Wait returns.
type Content interface {
	// ReadAt follows io.ReaderAt. It must return soon after ctx ends,
	// and must not use ctx after it has returned. Unless ctx has ended,
	// a reader of the mount sees an error as an I/O error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Backing returns the file on disk that the kernel may read instead.
	// The file must be complete, verified, and never change again, and
	// it must stay open as long as the mount lives.
	Backing() (*os.File, bool)
	// Cached returns the number of bytes of data that can be read
	// without the network.
	Cached() int64
}

// Taker is a Content that is told what it need not keep in memory.
type Taker interface {
	// Taken is told that the kernel has bytes [off, off+n) in the page cache
	// of the mount, or is about to. It does not block.
	Taken(off, n int64)
	// Untaken is told that the mount has no pages of the file any more. It does
	// not block.
	Untaken()
}

// File describes one file of a mount.
type File struct {
	Name      string      // a plain name of at most 255 bytes
	MediaType string      // shown as an xattr; may be empty
	Digest    string      // shown as an xattr; empty if the file has no digest of its own
	Mode      uint32      // permission bits; only those in 0555 are shown
	Map       *sparse.Map // the apparent size and the data ranges; never nil
	Content   Content
}

// Options configures a mount. UID and GID have no defaults: zero is root.
type Options struct {
	AllowOther bool         // other users have access; the root directory is 0555, not 0500
	NoExec     bool         // programs cannot be run from the mount
	Contexts   []string     // SELinux options, NAME=VALUE; a kernel without SELinux refuses them
	UID, GID   uint32       // owner of everything
	Time       time.Time    // the times of every file; zero is 1970
	FSName     string       // the source of the mount, normally the reference
	NoBacking  bool         // never use passthrough
	ReadAhead  int          // bytes the kernel reads ahead, if the process may set it; 0 is DefaultReadAhead
	Log        *slog.Logger // gets a line for each failed read; it should limit its rate
	Note       []byte       // data for the process that takes over; see Note

	// Decline reports whether it would be better to decline a speculative
	// READ of bytes [off, off+n) of a file; nil declines none. It is called
	// by threads that answer requests, so it returns at once.
	Decline func(name string, off, n int64) bool
	// Asked, if not nil, is called with each READ that is not declined,
	// before it is answered. again reports whether the first page was
	// declined before. It must return at once.
	Asked  func(name string, off, n int64, again bool)
	Record *Recording // only for Mount: what readers touch is recorded; nil: it is not

	// Crash makes a panic in a request's handler end the process, so
	// that another can take over. Otherwise a panic fails only the
	// request.
	Crash bool
}

// DefaultReadAhead is the size of one request. A page fault reads that much
// around its address, so a larger value would cost readers that touch
// little.
const DefaultReadAhead = maxRequest

// rootIno is the root directory's inode number. File i is firstIno+i.
const (
	rootIno  = fuse.FUSE_ROOT_ID
	firstIno = rootIno + 1
)

// node is a file with the mount's state about it.
type node struct {
	File
	ino  uint64
	attr fuse.Attr

	// open serialises decisions about the open mode.
	open sync.Mutex
	// noBacking is set once the kernel has refused the backing file.
	noBacking bool

	bare     atomic.Bool // the mount has no pages of it
	known    atomic.Bool // whether the kernel has looked up the inode, as far as this process has seen
	declined declined
	readers  readers
	reads    reads
}

// tree answers the kernel's requests. Except for the handles it is built
// once and then only read.
type tree struct {
	fuse.RawFileSystem // answers ENOSYS for requests without a method here

	nodes  []*node
	byName map[string]*node
	root   fuse.Attr
	statfs fuse.StatfsOut

	memory  *memory
	handles *handles // in memory
	kernel  kernel
	crash   bool
	present func(*fuse.Server) error      // the function present, except in tests
	backing atomic.Bool                   // whether passthrough may be tried
	drop    func(ino uint64, r pageRange) // asks the kernel to drop pages; nil in tests
	log     *slog.Logger

	onKnown       atomic.Pointer[func(name string)]
	asked         func(name string, off, n int64, again bool)
	recorded      *recording                           // nil: nothing is recorded
	decline       func(name string, off, n int64) bool // nil: nothing is declined
	declinedReads atomic.Int64
}

// kernel is the part of the connection that the tree uses.
type kernel interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
	// dead reports whether the connection has ended.
	dead() bool
}

func newTree(files []File, opts Options) (*tree, error) {
	log := opts.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		byName:        make(map[string]*node, len(files)),
		log:           log,
		crash:         opts.Crash,
		decline:       opts.Decline,
		asked:         opts.Asked,
		present:       present,
	}
	t.backing.Store(!opts.NoBacking)
	for i, f := range files {
		if err := checkFile(&f); err != nil {
			return nil, err
		}
		if t.byName[f.Name] != nil {
			return nil, fmt.Errorf("two files are called %q", f.Name)
		}
		n := &node{File: f, ino: uint64(firstIno + i)}
		t.nodes = append(t.nodes, n)
		t.byName[f.Name] = n
	}
	t.setAttributes(opts)
	return t, nil
}

// checkFile refuses file descriptions that the kernel would misread. Names
// come from a registry and are checked when they are read; this is the last
// check.
func checkFile(f *File) error {
	switch {
	case f.Name == "" || f.Name == "." || f.Name == ".." || len(f.Name) > maxName || strings.ContainsAny(f.Name, "/\x00"):
		return fmt.Errorf("%q cannot be a file's name", f.Name)
	case f.Map == nil || f.Content == nil:
		return fmt.Errorf("file %q has no map or no content", f.Name)
	}
	return nil
}

// node returns the file with inode number ino, or nil.
func (t *tree) node(ino uint64) *node {
	if ino < firstIno || ino-firstIno >= uint64(len(t.nodes)) {
		return nil
	}
	return t.nodes[ino-firstIno]
}

func (t *tree) String() string { return "epochfs" }

// BytesContent returns the Content of a small file held in memory.
func BytesContent(b []byte) Content { return bytesContent(b) }

type bytesContent []byte

func (b bytesContent) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (b bytesContent) Backing() (*os.File, bool) { return nil, false }
func (b bytesContent) Cached() int64             { return int64(len(b)) }
