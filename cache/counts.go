package cache

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// Counts are sums over all files since the cache was opened. Reads that
// the kernel answers by itself are not among them.
type Counts struct {
	Reads  int64 // of files, by readers
	Bytes  int64 // that they were given
	Misses int64 // reads that had to wait for bytes
	Failed int64 // reads that ended with an error, but for those that the reader gave up

	Waiting int64 // reads that wait for bytes now

	// Retries are requests that did not bring what they were made for, and
	// were made again, by why: "slow", "content", what the Reason method of
	// the source's error says, or "other".
	Retries map[string]int64

	// Copied are bytes of granules that another cached file had.
	Copied int64

	// NotKept are bytes that were fetched and not written, because the disk
	// is slower than the link.
	NotKept int64

	// Wrong are pieces that were present and turned out to be wrong, by what
	// found them: "stream", "fetch", "copy", "late", "digest", "disk",
	// "verify", or "elsewhere", which is another process. All keys are there.
	Wrong map[string]int64
}

// counts are what Counts are made of.
type counts struct {
	reads, bytes, misses, failed, waiting, copied, notKept atomic.Int64

	mu      sync.Mutex
	retries map[string]int64
	wrong   map[string]int64
}

// read counts a read of n bytes that ended with err.
func (n *counts) read(ctx context.Context, size int, err error) {
	n.reads.Add(1)
	switch {
	case err == nil:
		n.bytes.Add(int64(size))
	case ctx.Err() == nil:
		n.failed.Add(1)
	}
}

// retried counts a request that failed with err.
func (n *counts) retried(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.retries == nil {
		n.retries = map[string]int64{}
	}
	n.retries[reason(err)]++
}

// foundWrong counts pieces that were found wrong.
func (n *counts) foundWrong(by string, pieces int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.wrong == nil {
		n.wrong = map[string]int64{}
	}
	n.wrong[by] += pieces
}

// reason returns the name of an error for counting.
func reason(err error) string {
	var wrong *contentError
	var told interface{ Reason() string }
	switch {
	case errors.As(err, &wrong):
		return "content"
	case errors.As(err, &told):
		return told.Reason()
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	}
	return "other"
}
