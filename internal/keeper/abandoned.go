package keeper

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel ends a connection when its last descriptor is closed. A thread of
// a killed process that waits for a locked page keeps its descriptor open, and
// the page stays locked until the READ that fills it is answered. If no other
// process is left to answer, the thread waits for ever, and with it every
// reader of the mount and every umount. Only an abort ends that.

// fuseDevice is the file whose descriptors are connections.
const fuseDevice = "/dev/fuse"

// lookAgain is how long a connection must stay abandoned. A descriptor may be
// handed from a process that was not yet looked at to one that was.
const lookAgain = 200 * time.Millisecond

// AbortAbandoned aborts the connection with the given number, or each if that
// is "", if it is open only in threads of killed processes of epochfs, and still
// is a moment later. Only root sees the processes of all users. On a kernel that
// does not show the connection of a descriptor in /proc, nothing is aborted.
func AbortAbandoned(number string) {
	root := os.Geteuid() == 0
	for n := range lasting(lookAgain, func() map[string]bool { return abandoned("/proc", number, root) }) {
		abort(n)
	}
}

// lasting returns what is found by two looks. The second is at least wait after
// the first, and there is none if the first finds nothing.
func lasting(wait time.Duration, look func() map[string]bool) map[string]bool {
	first := look()
	if len(first) == 0 {
		return nil
	}
	time.Sleep(wait)
	second := look()
	maps.DeleteFunc(second, func(n string, _ bool) bool { return !first[n] })
	return second
}

// abandoned returns the numbers of such connections, from a /proc where root may
// look into each process. Unless a killed process has a connection open, it
// reads no more than the state of each process.
func abandoned(proc, number string, root bool) map[string]bool {
	killed, living := map[string]bool{}, map[string]bool{}
	dirs, _ := filepath.Glob(proc + "/[0-9]*")
	dirs = slices.DeleteFunc(dirs, func(dir string) bool {
		_, gone := spentAt(dir)
		if gone && isWorker(dir) && (root || !heldBySystemd(dir)) {
			connectionsOf(dir, killed)
		}
		return gone
	})
	if number != "" {
		maps.DeleteFunc(killed, func(n string, _ bool) bool { return n != number })
	}
	if len(killed) == 0 {
		return nil
	}
	for _, dir := range dirs {
		connectionsOf(dir, living)
	}
	maps.DeleteFunc(killed, func(n string, _ bool) bool { return living[n] })
	return killed
}

// isWorker reports whether a process has the name that ps shows of workers.
func isWorker(dir string) bool {
	name, _ := os.ReadFile(dir + "/comm")
	return string(name) == WorkerName+"\n"
}

// heldBySystemd reports whether systemd has started a killed process: then it
// may hold the connection for the next one. Root sees what it holds; a user may
// not look into the systemd of the user, which has a capability.
func heldBySystemd(dir string) bool {
	mark := []byte("SYSTEMD_EXEC_PID=" + filepath.Base(dir))
	files, _ := filepath.Glob(dir + "/task/*/environ") // some threads have lost theirs
	for _, file := range files {
		env, _ := os.ReadFile(file)
		if slices.ContainsFunc(bytes.Split(env, []byte{0}), func(kv []byte) bool { return bytes.Equal(kv, mark) }) {
			return true
		}
	}
	return false
}

// abort aborts a connection. If the kernel's file system for that is not
// mounted, root mounts it where no other process sees it.
func abort(number string) {
	file := number + "/abort"
	if number == "" || os.WriteFile(connections+"/"+file, []byte("1"), 0) == nil {
		return
	}
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(fs)
	if unix.FsconfigCreate(fs) != nil {
		return
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	if fd, err := unix.Openat(dir, file, unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Write(fd, []byte("1"))
		_ = unix.Close(fd)
	}
}

// connectionsOf adds the numbers of the connections that a process has open. A
// thread may have a descriptor table of its own.
func connectionsOf(dir string, into map[string]bool) {
	tasks, _ := filepath.Glob(dir + "/task/*")
	for _, task := range tasks {
		openConnections(task, into)
	}
}

// openConnections adds the numbers of the connections that a thread has open.
func openConnections(task string, into map[string]bool) {
	fds, _ := os.ReadDir(task + "/fd")
	for _, fd := range fds {
		if to, err := os.Readlink(task + "/fd/" + fd.Name()); err != nil || to != fuseDevice {
			continue
		}
		info, _ := os.ReadFile(task + "/fdinfo/" + fd.Name())
		for line := range bytes.Lines(info) {
			var number uint32
			if _, err := fmt.Sscanf(strings.TrimSpace(string(line)), "fuse_connection: %d", &number); err == nil {
				into[strconv.FormatUint(uint64(number), 10)] = true
			}
		}
	}
}
