package fs

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
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

// logRead tells of a failed read, once each, but no more than the limiter
// allows: a program may try again for ever.
func (t *tree) logRead(n *node, off int64, size int, err error) {
	ok, dropped := t.reads.allow(time.Now())
	if !ok {
		return
	}
	args := []any{"file", n.Name, "offset", off, "size", size, "digest", n.Digest, "error", err}
	if dropped > 0 {
		args = append(args, "like_it_before", dropped)
	}
	t.log.Error("read failed", args...)
}

// limiter lets limitBurst lines through at once and one a second after.
// Its zero value is ready.
type limiter struct {
	mu      sync.Mutex
	spent   int       // lines of the burst that are gone
	since   time.Time // when spent was last brought up to date
	dropped int       // lines held back since the last one let through
}

const (
	limitBurst = 20
	limitEvery = time.Second
)

// allow says whether a line may be written now, and how many were not
// since the last that was.
func (l *limiter) allow(now time.Time) (ok bool, dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := int(now.Sub(l.since) / limitEvery); n > 0 {
		l.spent = max(0, l.spent-n)
		l.since = now
	}
	if l.spent >= limitBurst {
		l.dropped++
		return false, 0
	}
	l.spent++
	dropped, l.dropped = l.dropped, 0
	return true, dropped
}
