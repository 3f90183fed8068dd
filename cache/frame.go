package cache

import (
	"bufio"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
)

// windows bounds the windows of frames that are decoded as streams, for the
// process, beside the buffers of fetches.
type windows struct{ bytes *semaphore.Weighted }

func newWindows() windows { return windows{semaphore.NewWeighted(zstdframe.MaxWindow)} }

// open decodes a frame as a stream. Its window counts until it is closed.
func (w windows) open(ctx context.Context, stored io.Reader, length int64) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(stored, 64<<10)
	head, err := in.Peek(zstdframe.HeaderSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	window := zstdframe.Window(head)
	if err := w.bytes.Acquire(ctx, window); err != nil {
		return nil, err
	}
	frame, err := zstdframe.NewReaderWindow(in, length, window)
	if err != nil {
		w.bytes.Release(window)
		return nil, err
	}
	return &windowed{frame, window, sync.OnceFunc(func() { w.bytes.Release(window) })}, nil
}

// windowed gives its window back when it is closed.
type windowed struct {
	io.ReadCloser
	size int64
	back func()
}

const largeWindow = 32 << 20

// closed is a reader that was closed.
type closed struct{}

func (closed) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (closed) Close() error             { return nil }

func (w *windowed) Close() error {
	err := w.ReadCloser.Close()
	w.ReadCloser = closed{}
	if w.size >= largeWindow {
		runtime.GC() // the next one shall find the memory of this one, not take as much again
	}
	w.back()
	return err
}
