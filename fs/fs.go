// Package fs shows the files of a snapshot as a read-only FUSE mount.
//
// The tree is one directory of regular files that never change, so
// everything the kernel may remember is fixed: the root is inode 1, the
// files are 2, 3, … in the order given, directory offsets are positions
// in that order. Names and attributes are handed out for hours, and the
// page cache is kept over opens. A process that takes a mount over knows
// the same numbers without being told; all it could not know stands in
// the handle table (handles.go).
//
// A file whose bytes are complete on disk is opened in passthrough mode:
// the kernel then reads the backing file itself.
//
// A process that uses its own mount can deadlock: Go may hold the thread
// that should answer. Use the mount from other processes only.
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

// ErrNoFUSE is in the chain of errors that say this machine, or this
// user, has no FUSE: the device or the helper is missing or forbidden.
// The text says which.
var ErrNoFUSE = errors.New("FUSE is not available")

// Content is a file's bytes. Its methods are called concurrently. The
// mount never closes it: that is for the owner, after Mount.Wait.
type Content interface {
	// ReadAt follows io.ReaderAt. It must return soon once ctx ends, and
	// must not use ctx after it has returned. Where ctx did not end, an
	// error reaches the reader as an I/O error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	// Backing is the file on disk that the kernel may read instead:
	// complete, verified, and never to change again. It stays open for
	// as long as the mount does.
	Backing() (*os.File, bool)
	// Cached is the number of bytes of data that need no network.
	Cached() int64
}

// File is one file of a mount.
type File struct {
	Name      string      // a plain name of at most 255 bytes
	MediaType string      // shown as an xattr; may be empty
	Digest    string      // shown as an xattr; empty for a file that has none of its own
	Mode      uint32      // permission bits; only those in 0555 are shown
	Map       *sparse.Map // the apparent size and where the data lies; never nil
	Content   Content
}

// Options say how a mount looks. UID and GID are taken as they are: zero
// is root.
type Options struct {
	AllowOther bool         // other users may look too; the root directory is 0555, not 0500
	NoExec     bool         // no program is run from the mount
	Contexts   []string     // NAME=VALUE of SELinux, for the kernel; it refuses them where it has no SELinux
	UID, GID   uint32       // owner of everything
	Time       time.Time    // shown as every file's times; zero is 1970
	FSName     string       // shown as the mount's source, normally the reference
	NoBacking  bool         // never use passthrough
	ReadAhead  int          // bytes the kernel reads ahead, where it may be set; 0 is DefaultReadAhead
	Log        *slog.Logger // gets a line for each read that fails: one that limits them is wise
	Note       []byte       // what the process that takes over will want to know; see Note

	// Crash, where it is set, has a panic in a request's handler end the
	// process, for another to take over, and not only the request.
	Crash bool
}

// DefaultReadAhead is one request's worth. A page fault reads that much
// around itself, so more would cost those who touch little.
const DefaultReadAhead = maxRequest

// rootIno is the root directory's inode number. File i is firstIno+i.
const (
	rootIno  = fuse.FUSE_ROOT_ID
	firstIno = rootIno + 1
)

// node is a file and what the mount knows of it.
type node struct {
	File
	ino  uint64
	attr fuse.Attr

	// open serialises the decisions about how the file is opened.
	open sync.Mutex
	// noBacking is set once the kernel refused the backing file.
	noBacking bool
}

// tree answers the kernel's requests. All of it but the handles is made
// once and then only read.
type tree struct {
	fuse.RawFileSystem // ENOSYS for what is not here

	nodes  []*node
	byName map[string]*node
	root   fuse.Attr
	statfs fuse.StatfsOut

	memory  *memory
	handles *handles // in memory
	kernel  kernel
	crash   bool
	present func(*fuse.Server) error // present, but in tests
	backing atomic.Bool              // passthrough may be tried
	log     *slog.Logger
}

// kernel is what the tree asks of the connection.
type kernel interface {
	RegisterBackingFd(*fuse.BackingMap) (int32, syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
	// dead says that the connection has ended.
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

// checkFile refuses what the kernel would take for something else. The
// names come from a registry and are checked there; this is the last
// door.
func checkFile(f *File) error {
	switch {
	case f.Name == "" || f.Name == "." || f.Name == ".." || len(f.Name) > maxName || strings.ContainsAny(f.Name, "/\x00"):
		return fmt.Errorf("%q cannot be a file's name", f.Name)
	case f.Map == nil || f.Content == nil:
		return fmt.Errorf("file %q has no map or no content", f.Name)
	}
	return nil
}

// node is the file with inode number ino, or nil.
func (t *tree) node(ino uint64) *node {
	if ino < firstIno || ino-firstIno >= uint64(len(t.nodes)) {
		return nil
	}
	return t.nodes[ino-firstIno]
}

func (t *tree) String() string { return "epochfs" }

// BytesContent is the content of a small file held in memory.
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
