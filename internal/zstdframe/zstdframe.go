// Package zstdframe decodes the zstd frames of format v2. Frames come
// from a registry and are hostile: how much memory they take is bounded
// by what the caller expects, never by what they say of themselves.
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
	// HeaderSize is the longest frame header: magic number, descriptor,
	// window, dictionary id and content size.
	HeaderSize = 18

	// MaxWindow is the largest window a frame may ask for: what zstd
	// itself decodes without --long. A decoder holds about this much.
	MaxWindow = 128 << 20

	magic = 0xFD2FB528
)

// ErrFrame is in the chain of every error that says the frame is wrong:
// damaged, cut, of another length than expected, or too hungry.
var ErrFrame = errors.New("bad zstd frame")

// ContentSize reads from a frame's first bytes (HeaderSize are always
// enough) how many bytes it says it decodes to. It is false where the
// header does not say, is cut, or is no zstd frame's.
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
		n += 256 // so the format has it: one byte holds what is below
	}
	return int64(n), n < 1<<62
}

// Window reads from a frame's first bytes (HeaderSize are always enough)
// how much memory its decoder needs for what came before, in bytes: at most
// MaxWindow, and MaxWindow where they do not tell.
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

// leastWindow is the smallest that a decoder can be told to keep to.
const leastWindow = 1 << 10

// decoder is shared: DecodeAll may be called concurrently and then waits
// for one of GOMAXPROCS places.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxWindow(MaxWindow),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// Decode decodes a whole frame, which must give exactly want bytes, into
// dst[:0] where that is large enough, else into new memory, and returns
// it. Any other content is an error in whose chain ErrFrame is. Memory
// is bounded by want. It is safe for concurrent use.
func Decode(dst, frame []byte, want int64) ([]byte, error) {
	if size, ok := ContentSize(frame); ok && size != want {
		return nil, fmt.Errorf("%w: says it holds %d bytes, want %d", ErrFrame, size, want)
	}
	if int64(cap(dst)) < want {
		dst = make([]byte, 0, want)
	}
	out, err := decoder().DecodeAll(frame, dst[:0:want])
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if int64(len(out)) != want {
		return nil, fmt.Errorf("%w: decodes to %d bytes, want %d", ErrFrame, len(out), want)
	}
	return out, nil
}

// NewReader decodes the frame that r gives, as a stream of exactly want
// bytes: io.EOF comes only after that many, when r is at its end too.
// A wrong frame is an error in whose chain ErrFrame is; an error of r is
// passed on as it is. It starts no goroutine and does not close r. Close
// gives its memory back.
func NewReader(r io.Reader, want int64) (io.ReadCloser, error) {
	return NewReaderWindow(r, want, MaxWindow)
}

// NewReaderWindow is NewReader for frames whose window is at most as large
// as given, in bytes: others are wrong.
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

// source remembers what went wrong with the stored bytes, to tell that
// from a wrong frame.
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

// end looks that nothing follows the last byte.
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

// Close frees the decoder. Reading on fails.
func (r *reader) Close() error {
	r.decoder.Close()
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
	return nil
}
