package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/cocoonstack/epochfs/cocoon"
	fusefs "github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Exit codes, as scripts rely on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3 // no such reference, file, snapshot or mount
	exitDenied      = 4 // credentials missing or refused
	exitUnreachable = 5 // registry not reachable, or too slow
	exitContent     = 6 // a digest, size, map or name that must not be
	exitCocoon      = 7 // cocoon failed
	exitDisk        = 8 // local disk or cache: full, no permission
	exitNoFUSE      = 9
)

// errNotFound is in the chain of errors about what is not there and that
// no other package has a word for.
var errNotFound = errors.New("not found")

// usageError is an error in how the command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// fileError is an error of a file of the user's that is to be written.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

// cannotWrite is err as one of the file that the user has named, where it
// may name a temporary one beside it.
func cannotWrite(name string, err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &path):
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	return fileError{&fs.PathError{Op: "write", Path: name, Err: err}}
}

// exitError is an error that another process has told, with its code.
type exitError struct {
	text string
	code int
}

func (e *exitError) Error() string { return e.text }

// kinds are looked at in this order: content that is wrong is so however
// it came about, and a disk's error says little when it is the cause of
// another.
var kinds = []struct {
	is   error
	code int
}{
	{registry.ErrReference, exitUsage},
	{layout.ErrContent, exitContent},
	{registry.ErrContent, exitContent},
	{inside.ErrMisbehaved, exitContent},
	{vfs.ErrDamaged, exitContent},
	{vfs.ErrMetacopy, exitNotFound},
	{fusefs.ErrNoFUSE, exitNoFUSE},
	{registry.ErrNotFound, exitNotFound},
	{cocoon.ErrNoSnapshot, exitNotFound},
	{snapshot.ErrBaseGone, exitNotFound},
	{errNotFound, exitNotFound},
	{registry.ErrDenied, exitDenied},
	{cocoon.ErrNameTaken, exitFailed},
	{registry.ErrUnreachable, exitUnreachable},
	{mounting.ErrOffline, exitUnreachable},
	{mounting.ErrTimeout, exitUnreachable},
	{context.DeadlineExceeded, exitUnreachable},
	{syscall.ENOSPC, exitDisk},
	{syscall.EDQUOT, exitDisk},
	{syscall.EROFS, exitDisk},
	{fs.ErrPermission, exitDisk},
	{mounting.ErrCache, exitDisk},
}

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var usage usageError
	var told *exitError
	var ran *cocoon.Error
	var file fileError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &told):
		return told.code
	case errors.As(err, &ran):
		return exitCocoon
	case errors.As(err, &file):
		return exitDisk
	}
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			return k.code
		}
	}
	return exitFailed
}

// interruptedError is the end of a command by a signal.
type interruptedError struct {
	error
	done string // what was done until then
}

func (e *interruptedError) Unwrap() error { return e.error }

// interrupted adds to the error of a context that a signal has ended what
// was done until then.
func interrupted(err error, format string, args ...any) error {
	return &interruptedError{err, fmt.Sprintf(format, args...)}
}

// message is an error's text in one printable line.
func message(err error) string {
	var ended *interruptedError
	switch {
	case errors.As(err, &ended):
		return printable("interrupted: " + ended.done)
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return printable(err.Error())
}
