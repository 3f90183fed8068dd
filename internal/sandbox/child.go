package sandbox

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// childEnv makes a process a child. Its value is confined or limited.
	childEnv = "EPOCHFS_SANDBOX"
	confined = "confined"
	limited  = "limited" // without the system call filter, for tests

	fromParent = 3 // descriptors
	toParent   = 4
)

// Is reports whether this process was started as a child. If so, main must
// call Main before it sets up anything else.
func Is() bool { return os.Getenv(childEnv) != "" }

// Main runs a child: it gives up everything else that the process could do,
// then serves until the parent closes the connection. It returns the exit
// code.
func Main(serve func(*Conn) error) int {
	level, err := confine(os.Getenv(childEnv) == confined)
	if err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		return 1
	}
	c := &Conn{r: rawPipe(fromParent), w: rawPipe(toParent)}
	err = c.Write(helloFrame, []byte{byte(level)})
	if err == nil {
		err = serve(c)
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// confine permanently gives up everything except the two pipes.
func confine(filter bool) (Level, error) {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT) // the parent ends the child
	signal.Ignore(unix.SIGPIPE)
	debug.SetMaxStack(maxStack)
	debug.SetMemoryLimit(heapLimit)
	runtime.GOMAXPROCS(1)
	time.Sleep(time.Microsecond) // the runtime opens what it needs for timers
	for _, fd := range []int{fromParent, toParent} {
		if err := unix.SetNonblock(fd, false); err != nil {
			return Limits, os.NewSyscallError("fcntl", err)
		}
	}
	if err := closeOthers(); err != nil {
		return Limits, err
	}
	if err := setLimits(); err != nil {
		return Limits, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return Limits, os.NewSyscallError("prctl", err)
	}
	if filter && installFilter() == nil {
		return Seccomp, nil
	}
	return Limits, nil
}

// closeOthers closes descriptors that were inherited from the program's
// caller. The runtime's own are marked close-on-exec, and stay.
func closeOthers() error {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil { // no /proc: the likely descriptors
		for fd := toParent + 1; fd < 1024; fd++ {
			closeInherited(fd)
		}
		return nil
	}
	for _, d := range dir {
		var fd int
		if _, err := fmt.Sscan(d.Name(), &fd); err == nil && fd > toParent {
			closeInherited(fd)
		}
	}
	return nil
}

func closeInherited(fd int) {
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
		_ = unix.Close(fd)
	}
}

// setLimits sets the resource limits of the child. Without a free descriptor
// nothing can be opened, filter or not.
func setLimits() error {
	limits := map[int]uint64{
		unix.RLIMIT_NOFILE: 0,
		unix.RLIMIT_FSIZE:  0, // pipes are no files
		unix.RLIMIT_CORE:   0, // no core dumps with guests' bytes
		unix.RLIMIT_DATA:   Memory,
		unix.RLIMIT_AS:     addressSpace,
	}
	if raceDetector { // it maps terabytes
		delete(limits, unix.RLIMIT_DATA)
		delete(limits, unix.RLIMIT_AS)
	}
	for which, most := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(which, &now); err == nil {
			most = min(most, now.Max)
		}
		if err := unix.Setrlimit(which, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// rawPipe is a descriptor used with plain system calls: os.File would need
// the runtime's poller, and more system calls.
type rawPipe int

func (fd rawPipe) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (fd rawPipe) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(int(fd), p[done:min(len(p), done+math.MaxInt32)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}
