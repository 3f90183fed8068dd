package fs

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// onDetachedThread runs do on a thread that has a table of descriptors of its
// own, in which only fd and what Go's runtime needs is open. It returns when
// that thread has begun. It returns false where the kernel does not allow a
// table of its own: then do runs with that of the process, and fd is closed
// when it returns.
//
// A file that the process closes, also by being killed, is then closed although
// the thread is in a system call that does not return.
func onDetachedThread(fd int, do func()) bool {
	detached := make(chan bool)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// What /proc/PID shows is the first thread's. Go may put another
			// goroutine on it only after this one has let go.
			other := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				close(other)
				run()
			}()
			<-other
			runtime.UnlockOSThread()
			return
		}
		if unix.Unshare(unix.CLONE_FILES) != nil {
			detached <- false
			do()
			_ = unix.Close(fd)
			runtime.UnlockOSThread()
			return
		}
		closeOthers(fd)
		detached <- true
		do()
		// The thread ends with its goroutine, which has it locked.
	}
	go run()
	return <-detached
}

// closeOthers closes the descriptors of files and sockets, but for fd and
// those of a terminal or log. The runtime's own are neither.
func closeOthers(fd int) {
	names, err := os.ReadDir("/proc/thread-self/fd")
	if err != nil {
		return
	}
	for _, name := range names {
		n, err := strconv.Atoi(name.Name())
		if err != nil || n <= 2 || n == fd {
			continue
		}
		to, err := os.Readlink("/proc/thread-self/fd/" + name.Name())
		if err == nil && (strings.HasPrefix(to, "/") || strings.HasPrefix(to, "socket:")) {
			_ = unix.Close(n)
		}
	}
}
