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
	"github.com/cocoonstack/epochfs/internal/workingset"
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
	exitContent     = 6 // an invalid digest, size, map or name
	exitCocoon      = 7 // cocoon failed
	exitDisk        = 8 // local disk or cache: full, no permission
	exitNoFUSE      = 9
)

// errNotFound is wrapped by errors about something that does not exist, if
// no other package has an error for it.
var errNotFound = errors.New("not found")

// usageError is an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// fileError is an error of writing a file of the user's.
type fileError struct{ error }

func (e fileError) Unwrap() error { return e.error }

// cannotWrite returns err with the name of the user's file instead of that
// of a temporary file.
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

// exitError is an error reported by another process, with its exit code.
type exitError struct {
	text string
	code int
}

func (e *exitError) Error() string { return e.text }

// kinds are in order of precedence: wrong content counts however it came
// about, and a disk's error counts little if it caused another.
var kinds = []struct {
	is   error
	code int
}{
	{registry.ErrReference, exitUsage},
	{layout.ErrContent, exitContent},
	{registry.ErrContent, exitContent},
	{workingset.ErrInvalid, exitContent},
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

// exitCode returns the exit code of an error. It is the only function that
// does.
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
	done string // what was done before
}

func (e *interruptedError) Unwrap() error { return e.error }

// interrupted adds what was done to the error of a context that a signal
// ended.
func interrupted(err error, format string, args ...any) error {
	return &interruptedError{err, fmt.Sprintf(format, args...)}
}

// message returns an error's text in one printable line.
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
