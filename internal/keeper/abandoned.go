package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel ends a connection when its last descriptor is closed. A thread of
// a killed process that waits for a locked page keeps its descriptor open, and
// the page stays locked until the READ that fills it is answered. If no other
// process is left to answer, the thread waits for ever, and so does everybody
// who reads from the mount or unmounts it. Then only an abort helps.

// fuseDevice is the file whose descriptors are connections.
const fuseDevice = "/dev/fuse"

// AbortAbandoned aborts the connection with the given number, or each if that
// is "", if it is open only in threads of killed processes. Only root sees the
// processes of all users. On a kernel that does not show the connection of a
// descriptor in /proc, nothing is aborted.
func AbortAbandoned(number string) {
	killed, living := map[string]bool{}, map[string]bool{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		into := living
		if _, gone := spent(pid); gone {
			into = killed
		}
		tasks, _ := filepath.Glob(dir + "/task/*")
		for _, task := range tasks { // a thread may have a descriptor table of its own
			openConnections(task, into)
		}
	}
	for n := range killed {
		if !living[n] && (number == "" || number == n) {
			abort(n)
		}
	}
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
