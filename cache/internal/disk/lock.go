package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Locks between processes are open-file-description locks on bytes of the
// state file. They go when the description goes, so a dead process holds
// none.
const (
	LockInUse = 0 // shared by all processes that have the file open; exclusive to evict
	LockSetup = 1 // exclusive while the header is written or judged
	lockSeal  = 2 // exclusive while the file is verified as a whole
	lockRoom  = 3 // exclusive while room for words is made by writing zeros
)

// TryLock takes a lock of a kind (unix.F_RDLCK, unix.F_WRLCK) on n bytes from
// off without waiting. ok is false if somebody else holds one that excludes it.
func TryLock(f *os.File, kind int16, off, n int64) (ok bool, err error) {
	return setLock(f, kind, off, n)
}

// LockPatience bounds the wait for a lock that others hold for some system
// calls only. A process that has it longer is stopped, or its disk hangs.
const LockPatience = 5 * time.Second

// ErrHeld is the error of a lock that somebody has for too long.
var ErrHeld = errors.New("held too long")

// Lock takes a lock and waits for it, but not for a process that is stopped.
func Lock(f *os.File, kind int16, off, n int64) error { return lockFor(f, kind, off, n, LockPatience) }

// lockNow takes a lock without waiting. If somebody else has it, the error is
// ErrHeld.
func lockNow(f *os.File, kind int16, off, n int64) error {
	ok, err := TryLock(f, kind, off, n)
	if err == nil && !ok {
		err = ErrHeld
	}
	return err
}

// lockFor is Lock with another patience.
func lockFor(f *os.File, kind int16, off, n int64, patience time.Duration) error {
	pause := 100 * time.Microsecond
	for began := time.Now(); ; time.Sleep(pause) {
		if ok, err := TryLock(f, kind, off, n); ok || err != nil {
			return err
		}
		if time.Since(began) > patience {
			return fmt.Errorf("the lock of %s is %w by %s", filepath.Base(f.Name()), ErrHeld, holders(f, off, n))
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// holders names the processes that have a file open and a lock on it that
// excludes others, as far as they can be seen. To the kernel such locks belong
// to no process. The files that others have open are asked nothing: they may
// be on a file system that does not answer.
func holders(f *os.File, off, n int64) string {
	own, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err.Error()
	}
	var found []string
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err != nil || name != own {
			continue
		}
		info, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		if err == nil && locks(string(info), off, n) {
			found = append(found, "process "+strings.Split(fd, "/")[2])
		}
	}
	slices.Sort(found)
	if found = slices.Compact(found); len(found) == 0 {
		return "a process that cannot be seen"
	}
	return strings.Join(found, ", ")
}

// locks reports whether a description with this text in fdinfo has an
// exclusive lock on any of n bytes from off:
//
//	lock:	1: OFDLCK ADVISORY  WRITE -1 fd:00:1234 1 1
func locks(fdinfo string, off, n int64) bool {
	for line := range strings.Lines(fdinfo) {
		fields := strings.Fields(line)
		if len(fields) != 9 || fields[0] != "lock:" || fields[4] != "WRITE" {
			continue
		}
		first, err := strconv.ParseInt(fields[7], 10, 64)
		if err != nil || first >= off+n {
			continue
		}
		if last, err := strconv.ParseInt(fields[8], 10, 64); err != nil || last >= off { // or EOF
			return true
		}
	}
	return false
}

// lockedElsewhere reports whether another open file description has a lock on
// any of n bytes from off.
func lockedElsewhere(f *os.File, off, n int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: off, Len: n}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}

// Unlock gives back a lock on n bytes from off.
func Unlock(f *os.File, off, n int64) {
	// Unlocking fails only for a bad descriptor, which holds no lock.
	_, _ = setLock(f, unix.F_UNLCK, off, n)
}

func setLock(f *os.File, kind int16, off, n int64) (bool, error) {
	l := unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: off, Len: n}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
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

// unlinked reports whether an open file has no name any more.
func unlinked(f *os.File) (bool, error) {
	var st unix.Stat_t
	err := os.NewSyscallError("fstat", unix.Fstat(int(f.Fd()), &st))
	return err == nil && st.Nlink == 0, err
}
