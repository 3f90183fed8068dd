package keeper

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

// Mount is a mount whose process can be changed.
type Mount struct {
	Dir    string // "" if the keeper has ended and only the worker knows the directory
	Device string // device number, if a caller has set it
	Keeper int    // process id, 0 if the keeper has ended
	Worker int    // process id, 0 if no worker serves at present

	Systemd int // process id of the systemd that acts as keeper, or 0

	Fixed string // why the process cannot be changed; "" if a change can be tried

	socket string
}

// answerTimeout bounds how long a keeper may take to answer.
const answerTimeout = 5 * time.Second

// List asks all keepers, and all workers without one, in a directory of
// sockets. It removes the sockets of dead processes.
func List(sockets string) ([]Mount, error) {
	entries, err := os.ReadDir(sockets)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var all []Mount
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		pid, atoiErr := strconv.Atoi(strings.TrimSuffix(e.Name(), ext))
		if atoiErr != nil || ext != keeperSuffix && ext != orphanSuffix {
			continue
		}
		m := Mount{socket: filepath.Join(sockets, e.Name())}
		answer, err := ask(m.socket, newMessage(varAsk, "1"), answerTimeout)
		if errors.Is(err, unix.ECONNREFUSED) {
			_ = os.Remove(m.socket)
		}
		if err != nil {
			continue
		}
		if ext == orphanSuffix {
			m.Worker = pid
		} else {
			m.Dir = answer.vars[varDir]
			m.Keeper = pid
			m.Worker, _ = strconv.Atoi(answer.vars[varWorker])
		}
		all = append(all, m)
	}
	return all, err
}

// Restart makes this process's binary take over the mount, and returns the
// mount's new state. After an error the mount is served as before.
func (m Mount) Restart() (Mount, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return m, err
	}
	defer exe.Close()
	question := newMessage(varRestart, "1")
	question.fds = []int{int(exe.Fd())}
	answer, err := ask(m.socket, question, 2*defaultTimes.start+answerTimeout)
	if err != nil {
		return m, fmt.Errorf("ask the keeper: %w", err)
	}
	if s := answer.vars[varStatus]; s != "" {
		return m, errors.New(s)
	}
	m.Worker, err = strconv.Atoi(answer.vars[varWorker])
	return m, err
}

// ask sends one question and returns the answer.
func ask(socket string, question message, patience time.Duration) (message, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return message{}, err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return message{}, err
	}
	if err := send(fd, question, nil); err != nil {
		return message{}, err
	}
	answer, err := receive(fd)
	if errors.Is(err, unix.EAGAIN) {
		err = unix.ETIMEDOUT
	}
	closeAll(answer.fds)
	return answer, err
}

// Rekeep starts a new keeper, from this process's binary, for a worker that
// has lost its keeper. Later workers get the worker's own arguments and
// environment.
func (m Mount) Rekeep(s Start) (Mount, error) {
	args, err := nullSeparated(m.Worker, "cmdline")
	if err != nil {
		return m, err
	}
	env, err := nullSeparated(m.Worker, "environ")
	if err != nil {
		return m, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return m, os.NewSyscallError("socketpair", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "link")
	defer ours.Close()
	defer unix.Close(pair[1])
	s.Args, s.adopt, s.link = args, m.Worker, ours
	s.Env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, namesEnv+"=") })
	cmd, err := s.Command()
	if err != nil {
		return m, err
	}
	if err := cmd.Start(); err != nil {
		return m, fmt.Errorf("start a keeper: %w", err)
	}
	question := newMessage(varAdopt, "1")
	question.fds = []int{pair[1]}
	if _, err := ask(m.socket, question, answerTimeout); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return m, fmt.Errorf("ask process %d: %w", m.Worker, err)
	}
	m.Keeper = cmd.Process.Pid
	m.socket = filepath.Join(s.Sockets, strconv.Itoa(m.Keeper)+keeperSuffix)
	return m, cmd.Process.Release()
}

func nullSeparated(pid int, name string) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), nil
}
