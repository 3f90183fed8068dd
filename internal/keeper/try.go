package keeper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Replace makes the installed binary take over a mount that systemd keeps.
// It first starts a worker of this process's binary to find out whether it
// can take over; then it kills the serving worker, and systemd starts the
// installed binary. memoryName is the name of the mount's memory in /proc.
func (m Mount) Replace(memoryName string) error {
	if err := m.try(memoryName); err != nil {
		return err
	}
	return os.NewSyscallError("kill", unix.Kill(m.Worker, unix.SIGKILL))
}

// try makes a worker prepare itself with the mount's memory but without the
// connection, which no worker uses before it serves.
func (m Mount) try(memoryName string) error {
	args, err := nullSeparated(m.Worker, "cmdline")
	if err != nil {
		return err
	}
	env, err := nullSeparated(m.Worker, "environ")
	if err != nil {
		return err
	}
	memory, err := memoryOf(m.Worker, memoryName)
	if err != nil {
		return err
	}
	defer memory.Close()
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer nothing.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "link")
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Dir = args, "/"
	cmd.ExtraFiles = []*os.File{theirs, nothing, memory}
	cmd.Env = append(slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, notifyEnv+"=") }),
		namesEnv+"="+strings.Join([]string{linkName, Device, Memory}, ":"), chosenEnv+"=1")
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	return verdict(pair[0])
}

// verdict returns nil if the worker at the other end could take over.
func verdict(link int) error {
	limit := unix.NsecToTimeval(defaultTimes.start.Nanoseconds())
	_ = unix.SetsockoptTimeval(link, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	for end := time.Now().Add(defaultTimes.start); time.Now().Before(end); {
		said, err := receive(link)
		closeAll(said.fds)
		switch {
		case errors.Is(err, ErrGone) || errors.Is(err, unix.ECONNRESET):
			return errors.New("it ended before it could serve")
		case err != nil && !errors.Is(err, unix.EAGAIN):
			return err
		case said.is(varStandby):
			return nil
		case said.vars[varStatus] != "":
			return errors.New(said.vars[varStatus])
		}
	}
	return errors.New("it was not prepared in time")
}

// memoryOf opens the memory of the mount that a process serves.
func memoryOf(pid int, memoryName string) (*os.File, error) {
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if to, err := os.Readlink(name); err == nil && strings.HasPrefix(to, "/memfd:"+memoryName+" ") {
			return os.OpenFile(name, os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("process %d has no memory of a mount", pid)
}
