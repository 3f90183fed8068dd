package transport

import (
	"context"
	"errors"
	"io"
)

// Source reads stored blobs. It must be comparable, and safe for concurrent
// use.
type Source interface {
	// OpenBlob opens bytes [off, off+n) of a stored blob of the given size.
	// If the registry ignores Range, whole is true and the body is all of
	// the blob from its first byte. A body that ends early ends with an
	// error other than io.EOF. Both the call and the body's Read end when
	// ctx ends.
	//
	// An error is final if a method Temporary() bool in its chain returns
	// false. A method RetryAfter() time.Duration in its chain returns how
	// long the registry asks to be left alone.
	OpenBlob(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error)
}

// Mirrored is a Source that can get the same bytes from several places.
type Mirrored interface {
	Source
	// OpenTrusted is OpenBlob for bytes that are used before a digest has
	// vouched for them. It asks only places that prove who they are.
	OpenTrusted(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error)
	// Blame reports that bytes of a blob did not have their digest. body is
	// what they came in, or nil if that is not known any more. The place
	// that sent them is not asked for this blob again while there are
	// others; more reports whether there are.
	Blame(digest string, body io.ReadCloser) (more bool)
}

// Origin is a Source that names who stands for bytes which no digest
// vouches for before all of their blob has come.
type Origin interface {
	// Origin names the registry. Files with such bytes are kept apart by it.
	Origin() string
	// Proven reports whether the registry has proved who it is. If it has
	// not, such bytes are not handed out before their blob was hashed.
	Proven() bool
}

// Proven reports whether src has proved who it is. A Source that is no
// Origin counts as proven.
func Proven(src Source) bool {
	o, ok := src.(Origin)
	return !ok || o.Proven()
}

// Range is what one request asks for: bytes [Off, Off+N) of a blob.
type Range struct {
	Digest string
	Size   int64 // of the blob
	Off, N int64
	// Checked reports whether the bytes are compared with a digest before
	// they are used; then any mirror may send them.
	Checked bool
	// Stream reports whether the range is all of a blob that is taken in
	// from its first byte to its last, however large it is.
	Stream bool
}

// partial reports whether r is less than all of its blob.
func (r Range) partial() bool { return r.Off > 0 || r.N < r.Size }

// ErrSlow is a request that was given up because it stood still.
var ErrSlow error = slowError{}

type slowError struct{}

func (slowError) Error() string  { return "request stands still and is made again" }
func (slowError) Reason() string { return "slow" }

// Final reports whether err is one that another request does not mend.
func Final(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && !t.Temporary()
}

// NoEOF returns err, or io.ErrUnexpectedEOF for the end of a body that came
// too early.
func NoEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
