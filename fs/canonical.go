package fs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostLinks bounds the length of a chain of symbolic links, as the kernel
// does.
const mostLinks = 40

// Canonical returns a directory's path as the kernel lists it: absolute, and
// without symbolic links. It sends no request to the directory's file
// system, so dir may be a mount that does not answer, or a "." inside one.
func Canonical(dir string) (string, error) {
	if !filepath.IsAbs(dir) {
		here, err := getwd()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(here, dir)
	}
	for range mostLinks {
		dir = filepath.Clean(dir)
		parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			return "", err
		}
		dir = filepath.Join(parent, filepath.Base(dir))
		// Lstat would request the attributes of a mount's root; Readlink
		// does not.
		to, err := os.Readlink(dir)
		if err != nil {
			return dir, nil
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(parent, to)
		}
		dir = to
	}
	return "", &os.PathError{Op: "follow", Path: dir, Err: unix.ELOOP}
}

// getwd returns the working directory as the kernel reports it. Unlike
// os.Getwd it does not request the directory's attributes.
func getwd() (string, error) {
	for size := 4096; ; size *= 2 {
		buf := make([]byte, size)
		n, err := syscall.Getcwd(buf)
		switch {
		case errors.Is(err, syscall.ERANGE) && size < 1<<20:
		case err != nil:
			return "", os.NewSyscallError("getcwd", err)
		default:
			return string(buf[:n-1]), nil // without the NUL
		}
	}
}
