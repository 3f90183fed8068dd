package keeper

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Orphan blocks until a new keeper has adopted this worker, whose keeper has
// ended. It listens in the directory sockets. The new keeper knows nothing,
// so the caller must send it everything again.
func (l *Link) Orphan(sockets string) error {
	socket, name, err := listenAt(sockets, orphanSuffix)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	defer os.Remove(name)
	requests := make(chan *request)
	go accept(socket, requests)
	for r := range requests {
		switch {
		case r.msg.is(varAdopt) && len(r.msg.fds) == 1:
			l.joinAnew(r.msg.fds[0])
			_ = unix.Shutdown(socket, unix.SHUT_RDWR) // ends accept
			r.reply(newMessage(varReady, "1"))
			return nil
		case r.msg.is(varAsk):
			closeAll(r.msg.fds)
			r.reply(newMessage(varWorker, strconv.Itoa(os.Getpid())))
		default:
			closeAll(r.msg.fds)
			r.reply(newMessage(varStatus, "this process does not know what it is asked"))
		}
	}
	return nil
}

// joinAnew replaces the keeper's socket.
func (l *Link) joinAnew(socket int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = unix.Close(l.socket)
	l.socket = socket
	l.lost = make(chan struct{})
	go l.listen(socket, l.lost)
}
