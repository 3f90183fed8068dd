package keeper

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Orphan waits, after the keeper has ended, for a new one: sockets is the
// directory in which it can be asked for. It returns when a new one is
// there, which must then be told everything anew, or with an error.
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

// joinAnew goes on with another keeper.
func (l *Link) joinAnew(socket int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = unix.Close(l.socket)
	l.socket = socket
	l.lost = make(chan struct{})
	go l.listen(socket, l.lost)
}
