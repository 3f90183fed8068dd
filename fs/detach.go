package fs

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// onDetachedThread runs do on a thread with its own descriptor table, which
// contains only fd and the descriptors of Go's runtime. It returns true once
// the thread runs. If the kernel does not allow a private table, it returns
// false: do then runs with the table of the process, and fd is closed when
// do returns.
//
// A private table matters when the process closes a file, or is killed,
// while the thread is inside a system call that does not return: the file is
// closed all the same.
func onDetachedThread(fd int, do func()) bool {
	detached := make(chan bool)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// /proc/PID shows the descriptor table of the first thread. The
			// first thread stays locked until another thread runs the
			// goroutine.
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
		// The locked thread ends with its goroutine.
	}
	go run()
	return <-detached
}

// closeOthers closes all descriptors of files and sockets except fd and
// those of standard input, output and error. The runtime's own descriptors
// are neither files nor sockets.
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
