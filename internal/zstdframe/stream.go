package zstdframe

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// ErrWindow is wrapped, beside ErrFrame, by the error for a frame whose
// window exceeds the bound.
var ErrWindow = errors.New("its window is larger than the bound")

// NewStream returns a reader that decodes consecutive frames until r ends,
// as the zstd program does with a file. It holds at most window bytes of
// decoded data. The error for an invalid frame wraps ErrFrame; an error of r
// is returned unchanged. NewStream starts no goroutine, and Close does not
// close r.
func NewStream(r io.Reader, window int64) (io.ReadCloser, error) {
	src := &source{r: r}
	d, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeBuffersBelow(0),
		zstd.WithDecoderMaxWindow(uint64(window)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	return &frames{reader{decoder: d, src: src}}, nil
}

// frames is a reader without an expected length.
type frames struct{ reader }

func (s *frames) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	n, err := s.decoder.Read(p)
	if err != nil {
		s.err = err
		if err != io.EOF {
			s.err = s.blame(err)
		}
		if errors.Is(err, zstd.ErrWindowSizeExceeded) {
			s.err = fmt.Errorf("%w: %w", ErrFrame, ErrWindow)
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, s.err
}
