package zstdframe

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// MaxLevel is zstd's highest level; the lowest is 1.
const MaxLevel = 22

// maxSingle is the largest content, in bytes, that is encoded as a single
// segment. A streaming decoder must hold all of a single segment in memory.
const maxSingle = 32 << 20

// Encoder encodes zstd frames whose headers contain the content size. Equal
// contents yield equal frames. An Encoder is safe for concurrent use.
type Encoder struct {
	level  zstd.EncoderLevel
	single *zstd.Encoder // up to maxSingle
	large  *zstd.Encoder // above
}

// NewEncoder returns an encoder that encodes up to workers contents at a
// time. The level is mapped to the nearest one that the encoder implements.
func NewEncoder(level, workers int) (*Encoder, error) {
	if level < 1 || level > MaxLevel {
		return nil, fmt.Errorf("zstd level %d is not one of 1 to %d", level, MaxLevel)
	}
	e := &Encoder{level: zstd.EncoderLevelFromZstd(level)}
	opts := []zstd.EOption{zstd.WithEncoderLevel(e.level), zstd.WithEncoderConcurrency(workers), zstd.WithZeroFrames(true)}
	var err error
	if e.large, err = zstd.NewWriter(nil, opts...); err == nil {
		e.single, err = zstd.NewWriter(nil, append(opts, zstd.WithSingleSegment(true))...)
	}
	return e, err
}

// Encode appends the frame of src to dst[:0], and allocates if dst is too
// small.
func (e *Encoder) Encode(dst, src []byte) []byte {
	if len(src) > maxSingle {
		return e.large.EncodeAll(src, dst[:0])
	}
	return e.single.EncodeAll(src, dst[:0])
}

// Stream returns a reader of the frame of src, which must yield size bytes.
// The contents are encoded as they are read, in the memory of one window.
func (e *Encoder) Stream(src io.Reader, size int64) (io.Reader, error) {
	s := &stream{src: src, left: size, buf: make([]byte, min(size, streamRead))}
	if size <= streamRead {
		s.whole = e // a short streamed frame's header has no content size
		return s, nil
	}
	var err error
	if s.z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(e.level), zstd.WithEncoderConcurrency(1)); err != nil {
		return nil, err
	}
	s.z.ResetContentSize(&s.out, size)
	return s, nil
}

// streamRead is the number of bytes that a stream encodes at a time.
const streamRead = 1 << 20

type stream struct {
	src  io.Reader
	left int64 // of src
	z    *zstd.Encoder
	buf  []byte
	out  bytes.Buffer
	err  error // sticky; io.EOF once the frame is complete

	whole *Encoder // encodes all at once; nil if z encodes
}

func (s *stream) Read(p []byte) (int, error) {
	for s.out.Len() == 0 && s.err == nil {
		s.err = s.more()
	}
	if s.out.Len() > 0 {
		return s.out.Read(p)
	}
	return 0, s.err
}

// more encodes the next streamRead bytes.
func (s *stream) more() error {
	n, err := io.ReadFull(s.src, s.buf[:min(s.left, int64(len(s.buf)))])
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	s.left -= int64(n)
	if s.whole != nil {
		s.out.Write(s.whole.Encode(nil, s.buf[:n]))
		return io.EOF
	}
	if _, err := s.z.Write(s.buf[:n]); err != nil {
		return err
	}
	if s.left > 0 {
		return nil
	}
	if err := s.z.Close(); err != nil {
		return err
	}
	return io.EOF
}
