package fs

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// toErrno is the only place where an error becomes what a reader sees.
func toErrno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return syscall.EIO
}

// errInterrupted says that the reader has left.
var errInterrupted = errors.New("interrupted")

// logRead tells of a failed read, once each.
func (t *tree) logRead(n *node, off int64, size int, err error) {
	t.log.Error("read failed", "file", n.Name, "offset", off, "size", size, "digest", n.Digest, "error", err)
}
