package keeper

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Variables of questions to a keeper, or to a worker that has lost its
// keeper.
const (
	varAsk     = "EPOCHFS_ASK"     // 1: describe the mount
	varRestart = "EPOCHFS_RESTART" // 1: let the attached binary take over
	varAdopt   = "EPOCHFS_ADOPT"   // 1, to a worker: the attached socket leads to a new keeper
	varWorker  = "EPOCHFS_WORKER"  // in answers: process id of the serving worker
)

// Suffixes of socket names; the prefix is the process id.
const (
	keeperSuffix = ".keeper"
	orphanSuffix = ".orphan"
	statusSuffix = ".sock" // a worker's own; see internal/control
	newSuffix    = ".new"  // any socket that does not listen yet
)

// askTimeout bounds the wait for a question on an accepted connection, in
// seconds.
const askTimeout = 5

// request is a question whose asker waits for an answer.
type request struct {
	socket int
	msg    message
	old    *worker // restart: the worker to be replaced
	next   *worker // restart: its replacement
}

func (r *request) reply(m message) {
	_ = send(r.socket, m, nil) // fails harmlessly if the asker has left
	_ = unix.Close(r.socket)
}

// listen accepts questions from processes of the same user and of root. A
// keeper without a socket keeps descriptors but cannot be asked.
func listen(dir string, log *slog.Logger) (<-chan *request, func()) {
	socket, name, err := listenAt(dir, keeperSuffix)
	if err != nil {
		if dir != "" {
			log.Warn("epochfs restart will not find this mount", "error", err)
		}
		return nil, func() {}
	}
	requests := make(chan *request)
	go accept(socket, requests)
	return requests, func() { _ = os.Remove(name) }
}

// listenAt creates a socket that gets its name only once it listens: a named
// socket that does not listen looks like a dead process's.
func listenAt(dir, suffix string) (socket int, name string, err error) {
	if dir == "" {
		return -1, "", os.ErrNotExist
	}
	base := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	name, first := base+suffix, base+newSuffix
	_ = os.Remove(first) // of a dead process with the same id
	socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	if err = unix.Bind(socket, &unix.SockaddrUnix{Name: first}); err == nil {
		if err = os.Chmod(first, 0o600); err == nil {
			err = unix.Listen(socket, 8)
		}
		if err == nil {
			err = os.Rename(first, name)
		}
	}
	if err != nil {
		_ = os.Remove(first)
		_ = unix.Close(socket)
		return -1, "", &os.PathError{Op: "listen", Path: name, Err: err}
	}
	return socket, name, nil
}

// accept forwards questions until the socket is shut down.
func accept(socket int, requests chan<- *request) {
	for {
		conn, _, err := unix.Accept4(socket, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			time.Sleep(100 * time.Millisecond)
			continue
		default:
			return
		}
		if m, ok := question(conn); ok {
			requests <- &request{socket: conn, msg: m}
		} else {
			_ = unix.Close(conn)
		}
	}
}

// question reads a question. ok is false if the asker is not permitted to
// ask.
func question(conn int) (message, bool) {
	cred, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return message{}, false
	}
	_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: askTimeout})
	m, err := receive(conn)
	return m, err == nil
}

// answer answers a question, or begins to.
func (k *keeper) answer(r *request) {
	fds := r.msg.fds
	switch {
	case r.msg.is(varRestart) && len(fds) == 1:
		r.msg.fds = nil
		k.beginRestart(r, fds[0])
		return
	case r.msg.is(varAsk):
		r.reply(k.about())
	default:
		r.reply(newMessage(varStatus, "this keeper does not know what it is asked"))
	}
	closeAll(fds)
}

func (k *keeper) about() message {
	m := newMessage(varKeeper, strconv.Itoa(os.Getpid()), varDir, k.dir)
	if k.serving != nil && !k.serving.ready.IsZero() {
		m.vars[varWorker] = strconv.Itoa(k.serving.pid)
	}
	return m
}

// beginRestart prepares a worker from another binary. The serving worker is
// killed once the new one is prepared. If the preparation fails, it serves
// on.
func (k *keeper) beginRestart(r *request, exe int) {
	exe, err := high(exe)
	switch {
	case err != nil:
		r.reply(newMessage(varStatus, err.Error()))
		return
	case !k.kept():
		_ = unix.Close(exe)
		r.reply(newMessage(varStatus, "this mount cannot change its process"))
		return
	case k.restart != nil:
		_ = unix.Close(exe)
		r.reply(newMessage(varStatus, "it is being restarted already"))
		return
	}
	k.killNext()
	k.restart = r
	r.old = k.serving
	k.startNext(exe)
}

// adopt takes over a running worker that has lost its keeper. The worker
// sends the descriptors to keep.
func (k *keeper) adopt(g *given) {
	w := &worker{pid: g.Adopt, link: g.Link, exe: k.exe, first: true, told: time.Now(), done: make(chan struct{})}
	k.serving = w
	k.follow(w)
}
