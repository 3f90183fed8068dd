package zstdframe

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// ErrWindow is in the chain, beside ErrFrame, of the error about a frame
// whose window is larger than it may be.
var ErrWindow = errors.New("its window is larger than the bound")

// NewStream decodes the frames that r gives until r ends, one after another,
// as the zstd program does with a file. It holds at most window bytes of what
// was decoded. A wrong frame is an error in whose chain ErrFrame is; an error
// of r is passed on as it is. It starts no goroutine and does not close r.
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

// frames is a reader without a length to compare with.
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
