package keeper

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Link is a worker's connection to the process that keeps its descriptors: a
// keeper, or systemd. It is safe for concurrent use.
type Link struct {
	to        unix.Sockaddr // systemd's socket; nil for a keeper
	inherited map[string][]*os.File
	chosen    bool
	one       bool          // started with one processor; see oneProcessor
	room      int           // of systemd's store, in descriptors
	serve     chan struct{} // closed when the keeper sends SERVE
	again     chan struct{} // see Again

	mu     sync.Mutex
	socket int
	keeper int           // process id; 0 once the keeper has ended
	lost   chan struct{} // closed when the keeper ends; a new keeper gets a new channel
}

// Join determines from the environment which process started this one, and
// takes the kept descriptors. It returns nil if no process keeps
// descriptors.
func Join() (*Link, error) {
	l := &Link{inherited: map[string][]*os.File{}, serve: make(chan struct{}), again: make(chan struct{}, 1), lost: make(chan struct{})}
	if names, ok := os.LookupEnv(namesEnv); ok {
		os.Unsetenv(namesEnv)
		l.chosen = os.Getenv(chosenEnv) != ""
		os.Unsetenv(chosenEnv)
		l.takeProcessors()
		l.inherit(strings.Split(names, ":"))
		link := l.Inherited(linkName)
		if link == nil {
			return nil, errors.New("the keeper gave no socket")
		}
		fd, err := unix.FcntlInt(link.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		link.Close()
		if err != nil {
			return nil, os.NewSyscallError("dup", err)
		}
		l.socket = fd
		l.keeper = os.Getppid()
		go l.listen(fd, l.lost)
		return l, nil
	}
	return l.joinSystemd()
}

// storeEnv is the number of descriptors that systemd keeps for this service.
// Older versions of systemd do not set it; a unit can.
const storeEnv = "FDSTORE"

func (l *Link) joinSystemd() (*Link, error) {
	path := systemdSocket()
	n, err := strconv.Atoi(os.Getenv(storeEnv))
	if path == "" || err != nil || n <= 0 {
		return nil, nil
	}
	l.room, l.keeper = n, os.Getppid()
	if l.socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	l.to = notifyAddress(path)
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		l.inherit(strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"))
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	close(l.serve) // systemd starts a process after the last one has ended
	return l, nil
}

// inherit takes one descriptor for each name, from 3 on.
func (l *Link) inherit(names []string) {
	for i, name := range names {
		fd := 3 + i
		unix.CloseOnExec(fd)
		l.inherited[name] = append(l.inherited[name], os.NewFile(uintptr(fd), name))
	}
}

// Inherited takes a descriptor that was kept under a name. It returns nil if
// none is left.
func (l *Link) Inherited(name string) *os.File {
	files := l.inherited[name]
	if len(files) == 0 {
		return nil
	}
	l.inherited[name] = files[1:]
	return files[0]
}

// Ready returns the descriptor on which a keeper's first worker reports its
// result, or nil if no process reads it.
func (l *Link) Ready() *os.File { return l.Inherited(readyName) }

// listen receives the keeper's messages until the keeper ends.
func (l *Link) listen(socket int, lost chan struct{}) {
	for {
		m, err := receive(socket)
		if err != nil {
			break
		}
		closeAll(m.fds)
		if pid, err := strconv.Atoi(m.vars[varKeeper]); err == nil {
			l.mu.Lock()
			l.keeper = pid
			l.mu.Unlock()
		}
		if m.is(varServe) {
			l.runOnAll()
			close(l.serve)
		}
		if m.is(varAgain) {
			select {
			case l.again <- struct{}{}:
			default: // a value is pending already
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keeper = 0
	close(lost)
}

// Lost returns a channel that is closed when the keeper has ended.
func (l *Link) Lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Again returns a channel that receives a value when requests that the
// kernel has handed to another process may be lost. The kernel should then
// be asked to send unanswered requests again.
func (l *Link) Again() <-chan struct{} { return l.again }

// KeeperPID returns the keeper's process id, or 0 without a keeper.
func (l *Link) KeeperPID() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keeper
}

// Chosen reports whether another worker still serves the mount well, so that
// this one may replace it only if it can serve as well.
func (l *Link) Chosen() bool { return l.chosen }

// Systemd reports whether systemd acts as keeper.
func (l *Link) Systemd() bool { return l.to != nil }

func (l *Link) send(m message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return send(l.socket, m, l.to)
}

// Room returns an error if n descriptors cannot be kept. A full store drops
// further descriptors without an error.
func (l *Link) Room(n int) error {
	if l.Systemd() && n > l.room {
		return fmt.Errorf("systemd's store for this service holds %d descriptors, and %d are needed: raise FileDescriptorStoreMax", l.room, n)
	}
	return nil
}

// Store sends a descriptor to be kept under a name.
func (l *Link) Store(name string, f *os.File) error {
	m := newMessage(varStore, "1", varName, name)
	if l.Systemd() {
		m.vars["FDPOLL"] = "0" // the worker, not systemd, detects a dead connection
	}
	m.fds = []int{int(f.Fd())}
	defer runtime.KeepAlive(f)
	return l.send(m)
}

// Remove asks for all descriptors kept under a name to be closed.
func (l *Link) Remove(name string) error {
	return l.send(newMessage(varRemove, "1", varName, name))
}

// Standby announces that all is prepared, and blocks until no other process
// serves. It fails if the keeper ends.
func (l *Link) Standby() error {
	if err := l.send(newMessage(varStandby, "1")); err != nil {
		return err
	}
	select {
	case <-l.serve:
		return nil
	case <-l.Lost():
		return ErrGone
	}
}

// Refuse reports why this process will not take over.
func (l *Link) Refuse(err error) { _ = l.send(newMessage(varStatus, err.Error())) }

// Serving reports that this process now serves the mount on dir, with the
// given connection number.
func (l *Link) Serving(dir string, connection uint32) error {
	return l.send(newMessage(varReady, "1", varDir, dir, varConnection, strconv.FormatUint(uint64(connection), 10)))
}

// Alive sends a sign of life. It never blocks: the queue of a stopped keeper
// holds signs enough.
func (l *Link) Alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = sendWith(l.socket, newMessage(varBeat, "1"), l.to, unix.MSG_DONTWAIT)
}
