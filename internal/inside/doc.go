// Package inside looks inside a guest's disk: a Session lists volumes, walks
// directories and reads files of an image that its caller can read.
//
// The guest's bytes are parsed in a child process (packages sandbox and
// reader) that asks this package for them. This package parses none itself:
// it serves the reads from a cache of pages, bounds what the child may ask
// and answer, and believes nothing of it. What it hands on is still the
// guest's word: names, sizes and times are to be treated as hostile text.
package inside

import (
	"context"
	"io/fs"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// ErrMisbehaved is in the chain of an error about the child: it crashed, hung,
// wanted too much or answered what cannot be.
var ErrMisbehaved = sandbox.ErrMisbehaved

// Forms of what is found in a disk.
type (
	File        = wire.File
	Volume      = wire.Volume
	Description = wire.Description
)

// Reader reads an image. ReadAt and ReadOn fill p or fail; ReadOn is for a
// caller that will read on, so that more may be fetched. They are safe for
// concurrent use.
type Reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	ReadOn(ctx context.Context, p []byte, off int64) (int, error)
	Size() int64
}

// Format is how an image holds a disk. It is the caller's decision, and never
// that of the image's first bytes.
type Format = wire.Format

// Formats.
const (
	Raw   = wire.FormatRaw
	Qcow2 = wire.FormatQcow2
)

// Image is a disk's image and what it is on top of.
type Image struct {
	Reader Reader
	Format Format
	Base   *Image // of a qcow2 file; nil: what the image lacks is unknown
}

// guestError is an error that the child has told.
type guestError struct {
	text string
	code wire.Code
}

func (e *guestError) Error() string { return e.text }

// Is makes the errors of package vfs and io/fs testable on this side.
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

// endOfCall is the error of a Done frame.
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
