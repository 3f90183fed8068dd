package zstdframe

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// MaxLevel is zstd's highest level; the lowest is 1.
const MaxLevel = 22

// maxSingle is the largest content, in bytes, that is made one segment.
// Who decodes such a frame as a stream holds all of it.
const maxSingle = 32 << 20

// Encoder makes zstd frames, each with its content size in the header.
// Equal content makes equal frames. It is safe for concurrent use.
type Encoder struct {
	level  zstd.EncoderLevel
	single *zstd.Encoder // up to maxSingle
	large  *zstd.Encoder // above
}

// NewEncoder makes an encoder that encodes up to workers contents at a
// time. Level is one of zstd's; the next that there is here is taken.
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

// Encode appends the frame of src to dst[:0], or to new memory where that
// is too small.
func (e *Encoder) Encode(dst, src []byte) []byte {
	if len(src) > maxSingle {
		return e.large.EncodeAll(src, dst[:0])
	}
	return e.single.EncodeAll(src, dst[:0])
}

// Stream is the frame of what src reads, which must be size bytes: it is
// encoded as it is read, within the memory of a window.
func (e *Encoder) Stream(src io.Reader, size int64) (io.Reader, error) {
	s := &stream{src: src, left: size, buf: make([]byte, min(size, streamRead))}
	if size <= streamRead {
		s.whole = e // a short frame of a stream has no room for its content size
		return s, nil
	}
	var err error
	if s.z, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(e.level), zstd.WithEncoderConcurrency(1)); err != nil {
		return nil, err
	}
	s.z.ResetContentSize(&s.out, size)
	return s, nil
}

// streamRead is how much a stream encodes at a time, in bytes.
const streamRead = 1 << 20

type stream struct {
	src  io.Reader
	left int64 // of src
	z    *zstd.Encoder
	buf  []byte
	out  bytes.Buffer
	err  error // sticky; io.EOF when the frame is whole

	whole *Encoder // encodes all at once; nil where z encodes
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

// more encodes a little.
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
