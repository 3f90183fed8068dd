package fs

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// toErrno maps an error to the errno that a reader gets. No other code does.
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

// errInterrupted is the error of a read whose reader is gone.
var errInterrupted = errors.New("interrupted")

// logRead logs a failed read.
func (t *tree) logRead(n *node, off int64, size int, err error) {
	t.log.Error("read failed", "file", n.Name, "offset", off, "size", size, "digest", n.Digest, "error", err)
}
