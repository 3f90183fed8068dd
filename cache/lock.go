package cache

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Locks between processes are open-file-description locks on bytes of the
// state file. They go when the description goes, so a dead process holds
// none.
const (
	lockInUse = 0 // shared by all who have the file open; exclusive to evict
	lockSetup = 1 // exclusive while the header is written or judged
	lockSeal  = 2 // exclusive while the file is verified as a whole
)

// tryLock takes a lock on n bytes from off without waiting. ok is false
// when somebody else holds one that excludes it.
func tryLock(f *os.File, kind int16, off, n int64) (ok bool, err error) {
	return setLock(f, unix.F_OFD_SETLK, kind, off, n)
}

// lock takes a lock and waits for it.
func lock(f *os.File, kind int16, off, n int64) error {
	_, err := setLock(f, unix.F_OFD_SETLKW, kind, off, n)
	return err
}

// lockedElsewhere says that another open file description has a lock on
// any of n bytes from off.
func lockedElsewhere(f *os.File, off, n int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: off, Len: n}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}

func unlock(f *os.File, off, n int64) {
	// Unlocking fails only for a bad descriptor, which holds no lock.
	_, _ = setLock(f, unix.F_OFD_SETLK, unix.F_UNLCK, off, n)
}

func setLock(f *os.File, cmd int, kind int16, off, n int64) (bool, error) {
	l := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: off, Len: n}
	for {
		err := unix.FcntlFlock(f.Fd(), cmd, &l)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
			return false, nil
		}
		return false, os.NewSyscallError("fcntl", err)
	}
}
