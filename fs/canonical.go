package fs

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostLinks bounds the symbolic links that lead from one to the next, as in
// the kernel.
const mostLinks = 40

// Canonical returns a directory's path as the kernel lists it: absolute, and
// without symbolic links. The directory may be a mount that does not answer,
// or be named by "." from inside of one: nothing is asked of it.
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
		// Not lstat: the root of a mount would be asked for its attributes.
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

// getwd returns the working directory as the kernel has it. os.Getwd would ask
// it for its attributes.
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
