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

// Link is a worker's way to who keeps its descriptors: a keeper, or
// systemd. It is safe for concurrent use.
type Link struct {
	to        unix.Sockaddr // systemd's socket; nil for a keeper
	inherited map[string][]*os.File
	chosen    bool
	room      int           // of systemd's store, in descriptors
	serve     chan struct{} // closed when the keeper says so
	again     chan struct{} // see Again

	mu     sync.Mutex
	socket int
	keeper int           // process id; 0 when it is gone
	lost   chan struct{} // closed when it goes; another with each keeper
}

// Join finds out who started this process, from the environment, and
// takes what has been kept. It returns nil where nobody keeps anything.
func Join() (*Link, error) {
	l := &Link{inherited: map[string][]*os.File{}, serve: make(chan struct{}), again: make(chan struct{}, 1), lost: make(chan struct{})}
	if names, ok := os.LookupEnv(namesEnv); ok {
		os.Unsetenv(namesEnv)
		l.chosen = os.Getenv(chosenEnv) != ""
		os.Unsetenv(chosenEnv)
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

// storeEnv says how many descriptors systemd keeps for this service, where
// it does. Older ones do not set it; then the unit can.
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
	close(l.serve) // the process before is dead
	return l, nil
}

// inherit takes descriptors from 3 on, one a name.
func (l *Link) inherit(names []string) {
	for i, name := range names {
		fd := 3 + i
		unix.CloseOnExec(fd)
		l.inherited[name] = append(l.inherited[name], os.NewFile(uintptr(fd), name))
	}
}

// Inherited takes a descriptor that was kept under a name; nil where there
// is none.
func (l *Link) Inherited(name string) *os.File {
	files := l.inherited[name]
	if len(files) == 0 {
		return nil
	}
	l.inherited[name] = files[1:]
	return files[0]
}

// Ready is the descriptor on which the first worker of a keeper tells how
// it went; nil where nobody waits for that.
func (l *Link) Ready() *os.File { return l.Inherited(readyName) }

// listen waits for SERVE, and for the keeper's end.
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
			close(l.serve)
		}
		if m.is(varAgain) {
			select {
			case l.again <- struct{}{}:
			default: // it has been told already
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keeper = 0
	close(lost)
}

// Lost is closed when the keeper has ended.
func (l *Link) Lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Again is sent to when requests that the kernel has handed to another
// process may have been lost with it: the kernel should be asked for them
// again.
func (l *Link) Again() <-chan struct{} { return l.again }

// KeeperPID is the keeper's process id, 0 where there is none.
func (l *Link) KeeperPID() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keeper
}

// Chosen says that another worker serves the mount, well, and this one is
// to take its place only if it can do as well.
func (l *Link) Chosen() bool { return l.chosen }

// Systemd says that systemd keeps what a keeper would.
func (l *Link) Systemd() bool { return l.to != nil }

func (l *Link) send(m message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return send(l.socket, m, l.to)
}

// Room says whether so many descriptors can be kept. A store that is full
// drops what it is sent, and does not tell.
func (l *Link) Room(n int) error {
	if l.Systemd() && n > l.room {
		return fmt.Errorf("systemd's store for this service holds %d descriptors, and %d are needed: raise FileDescriptorStoreMax", l.room, n)
	}
	return nil
}

// Store has a descriptor kept under a name.
func (l *Link) Store(name string, f *os.File) error {
	m := newMessage(varStore, "1", varName, name)
	if l.Systemd() {
		m.vars["FDPOLL"] = "0" // a dead connection is for us to find
	}
	m.fds = []int{int(f.Fd())}
	defer runtime.KeepAlive(f)
	return l.send(m)
}

// Remove has what is kept under a name closed.
func (l *Link) Remove(name string) error {
	return l.send(newMessage(varRemove, "1", varName, name))
}

// Standby says that all is prepared, and returns when nobody else serves.
// It fails when the keeper has ended.
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

// Refuse says why this process will not take over.
func (l *Link) Refuse(err error) { _ = l.send(newMessage(varStatus, err.Error())) }

// Serving says that the mount on dir, with that number of connection, is
// being served by this process.
func (l *Link) Serving(dir string, connection uint32) error {
	return l.send(newMessage(varReady, "1", varDir, dir, varConnection, strconv.FormatUint(uint64(connection), 10)))
}

// Alive is a sign of life. It never waits: a keeper that is stopped has
// signs enough.
func (l *Link) Alive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = sendWith(l.socket, newMessage(varBeat, "1"), l.to, unix.MSG_DONTWAIT)
}
