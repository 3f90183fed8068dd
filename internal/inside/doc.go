// Package inside reads the contents of a guest's disk: a Session lists
// volumes, walks directories and reads files of an image that its caller can
// read.
//
// A child process (packages sandbox and reader) parses the guest's bytes and
// requests them from this package. This package parses none itself: it
// serves the reads from a cache of pages, bounds the child's requests and
// answers, and trusts neither. The results still come from the guest: treat
// names, sizes and times as hostile text.
package inside

import (
	"context"
	"io/fs"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// ErrMisbehaved is wrapped by an error about the child: it crashed, hung,
// asked for too much or sent an impossible answer.
var ErrMisbehaved = sandbox.ErrMisbehaved

// Descriptions of what a disk contains.
type (
	File        = wire.File
	Volume      = wire.Volume
	Description = wire.Description
)

// Reader reads an image. ReadAt and ReadOn fill p or fail; ReadOn announces
// that the caller will read on, so that more may be fetched. They are safe
// for concurrent use.
type Reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	ReadOn(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64
}

// Format is the format of an image. The caller decides it, never the image's
// first bytes.
type Format = wire.Format

// Formats.
const (
	Raw   = wire.FormatRaw
	Qcow2 = wire.FormatQcow2
)

// Image is the image of a disk, with the image it is based on.
type Image struct {
	Reader Reader
	Format Format
	Base   *Image // backing image of a qcow2 file; nil if unknown
}

// guestError is an error that the child returned.
type guestError struct {
	text string
	code wire.Code
}

func (e *guestError) Error() string { return e.text }

// Is makes errors of packages vfs and io/fs testable by the parent.
func (e *guestError) Is(target error) bool {
	return target != nil && target == map[wire.Code]error{
		wire.NotFound:    fs.ErrNotExist,
		wire.Invalid:     fs.ErrInvalid,
		wire.Damaged:     vfs.ErrDamaged,
		wire.Unsupported: vfs.ErrUnsupported,
		wire.NoBase:      vfs.ErrNoBase,
		wire.Metacopy:    vfs.ErrMetacopy,
	}[e.code]
}

// endOfCall returns the error in a Done frame.
func (s *Session) endOfCall(d *wire.Decoder) error {
	if len(d.B) == 0 {
		return s.child.Misbehaved("an end without a code")
	}
	code := wire.Code(d.B[0])
	d.B = d.B[1:]
	text := d.Text(wire.MaxText)
	switch {
	case !d.Ok() || !code.Valid():
		return s.child.Misbehaved("an end that cannot be read")
	case code == wire.OK:
		return nil
	case code == wire.ImageFailed && s.failed != nil:
		return s.failed // in the words of the image's Reader
	}
	return &guestError{text, code}
}
