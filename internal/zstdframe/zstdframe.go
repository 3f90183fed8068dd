// Package zstdframe decodes the zstd frames of format v2. Frames come from a
// registry and are hostile: the length that the caller expects bounds their
// memory, not the values in their headers.
package zstdframe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// HeaderSize is the size of the longest frame header: magic number,
	// descriptor, window, dictionary id and content size.
	HeaderSize = 18

	// MaxWindow is the largest permitted window, the same as zstd's
	// without --long. A decoder uses about this much memory.
	MaxWindow = 128 << 20

	magic = 0xFD2FB528
)

// ErrFrame is wrapped by every error for an invalid frame: damaged,
// truncated, of another length than expected, or with too large a window.
var ErrFrame = errors.New("bad zstd frame")

// ContentSize returns the decoded size that a frame's header declares. It
// needs at most the first HeaderSize bytes. ok is false if the header
// declares no size, is truncated, or is not a zstd frame's.
func ContentSize(header []byte) (size int64, ok bool) {
	if len(header) < 5 || binary.LittleEndian.Uint32(header) != magic {
		return 0, false
	}
	descriptor := header[4]
	single := descriptor&0x20 != 0
	at := 5
	if !single {
		at++ // window descriptor
	}
	at += [4]int{0, 1, 2, 4}[descriptor&3] // dictionary id
	width := [4]int{0, 2, 4, 8}[descriptor>>6]
	if width == 0 && single {
		width = 1
	}
	if descriptor&0x08 != 0 || width == 0 || len(header) < at+width {
		return 0, false
	}
	var field [8]byte
	copy(field[:], header[at:at+width])
	n := binary.LittleEndian.Uint64(field[:])
	if width == 2 {
		n += 256 // the format adds 256: one byte holds smaller sizes
	}
	return int64(n), n < 1<<62
}

// Window returns the size of a frame's window in bytes, which is the decoded
// data that its decoder must hold. It needs at most the first HeaderSize
// bytes. The result is at most MaxWindow, and MaxWindow if the header is not
// conclusive.
func Window(header []byte) int64 {
	var h zstd.Header
	if err := h.Decode(header); err != nil || h.Skippable {
		return MaxWindow
	}
	n := h.WindowSize
	if h.SingleSegment {
		n = h.FrameContentSize
	}
	return int64(min(max(n, leastWindow), MaxWindow))
}

// leastWindow is the smallest window limit that a decoder accepts.
const leastWindow = 1 << 10

// decoder is shared: concurrent calls of DecodeAll wait for one of
// GOMAXPROCS decoders.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxWindow(MaxWindow),
		zstd.WithDecodeAllCapLimit(true),
		zstd.IgnoreChecksum(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// Slack is how many bytes of capacity beyond the content let Decode copy
// without looking for the end: small frames decode a third faster.
const Slack = 128<<10 + 64

// Decode decodes a complete frame, which must yield exactly want bytes, into
// dst[:0], and allocates if dst is too small. It may write to all of dst's
// capacity. The error for any other frame wraps ErrFrame. Memory is bounded by
// want and that capacity. The frame's checksum is not compared: callers compare
// digests. Decode is safe for concurrent use.
func Decode(dst, frame []byte, want int64) ([]byte, error) {
	if size, ok := ContentSize(frame); ok && size != want {
		return nil, fmt.Errorf("%w: says it holds %d bytes, want %d", ErrFrame, size, want)
	}
	if int64(cap(dst)) < want {
		dst = make([]byte, 0, want)
	}
	out, err := decoder().DecodeAll(frame, dst[:0])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if int64(len(out)) != want {
		return nil, fmt.Errorf("%w: decodes to %d bytes, want %d", ErrFrame, len(out), want)
	}
	return out, nil
}

// NewReader returns a reader that decodes the frame in r, which must yield
// exactly want bytes: it returns io.EOF only after want bytes, with r at its
// end too. The error for an invalid frame wraps ErrFrame; an error of r is
// returned unchanged. NewReader starts no goroutine. Close frees the decoder
// and does not close r.
func NewReader(r io.Reader, want int64) (io.ReadCloser, error) {
	return NewReaderWindow(r, want, MaxWindow)
}

// NewReaderWindow is NewReader with a limit on the frame's window, in bytes.
// A frame with a larger window is invalid.
func NewReaderWindow(r io.Reader, want, window int64) (io.ReadCloser, error) {
	src := &source{r: r}
	d, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecodeBuffersBelow(0),
		zstd.WithDecoderMaxWindow(uint64(window)))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	return &reader{decoder: d, src: src, want: want, left: want}, nil
}

// source records read errors, to distinguish them from invalid frames.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type reader struct {
	decoder    *zstd.Decoder
	src        *source
	want, left int64
	err        error // sticky
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	if r.left == 0 {
		r.err = r.end()
		return 0, r.err
	}
	n, err := r.decoder.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case err == io.EOF && r.left > 0:
		r.err = fmt.Errorf("%w: decodes to %d bytes, want %d", ErrFrame, r.want-r.left, r.want)
	case err != nil && err != io.EOF:
		r.err = r.blame(err)
	}
	if n > 0 {
		return n, nil
	}
	return 0, r.err
}

// end checks that nothing follows the last byte.
func (r *reader) end() error {
	var more [1]byte
	switch n, err := io.ReadFull(r.decoder, more[:]); {
	case n > 0:
		return fmt.Errorf("%w: decodes to more than %d bytes", ErrFrame, r.want)
	case err == io.EOF:
		return io.EOF
	default:
		return r.blame(err)
	}
}

func (r *reader) blame(err error) error {
	if r.src.err != nil {
		return r.src.err
	}
	return fmt.Errorf("%w: %v", ErrFrame, err)
}

// Close frees the decoder. Further reads fail.
func (r *reader) Close() error {
	r.decoder.Close()
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
	return nil
}
