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

// Mirrored is a Source that can get the same bytes from several mirrors.
type Mirrored interface {
	Source
	// OpenTrusted is OpenBlob for bytes that are used before a digest
	// verifies them. It asks only mirrors that authenticate themselves.
	OpenTrusted(ctx context.Context, digest string, size, off, n int64) (body io.ReadCloser, whole bool, err error)
	// Blame reports that bytes of a blob did not match their digest.
	// body is the answer that contained them, or nil if it is unknown.
	// The mirror that sent them is not asked for this blob again while
	// others are left; more reports whether others are left.
	Blame(digest string, body io.ReadCloser) (more bool)
}

// Origin is a Source with the name of the registry that vouches for bytes
// which no digest verifies before their whole blob has arrived.
type Origin interface {
	// Origin returns the name of the registry. Files with unverified
	// bytes are stored separately for each name.
	Origin() string
	// Proven reports whether the registry has authenticated itself. If
	// not, unverified bytes are not returned to readers before their
	// blob has been hashed.
	Proven() bool
}

// Proven reports whether src has authenticated itself. A Source that does
// not implement Origin counts as authenticated.
func Proven(src Source) bool {
	o, ok := src.(Origin)
	return !ok || o.Proven()
}

// Range is the range of one request: bytes [Off, Off+N) of a blob.
type Range struct {
	Digest string
	Size   int64 // of the blob
	Off, N int64
	// Checked reports whether the bytes are compared with a digest
	// before they are used; then any mirror may send them.
	Checked bool
	// Stream reports whether the range is a whole blob that is read from
	// its first byte to its last, however large the blob is.
	Stream bool
}

// partial reports whether r is less than its whole blob.
func (r Range) partial() bool { return r.Off > 0 || r.N < r.Size }

// ErrSlow is the error of a request that was given up because it stalled.
var ErrSlow error = slowError{}

type slowError struct{}

func (slowError) Error() string  { return "request stands still and is made again" }
func (slowError) Reason() string { return "slow" }

// Final reports whether err cannot be fixed by another request.
func Final(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && !t.Temporary()
}

// NoEOF returns io.ErrUnexpectedEOF if err is io.EOF, and otherwise err. It
// is for bodies that end too early.
func NoEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
