package keeper

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Messages between keeper and worker have the form of systemd's
// notifications: lines NAME=VALUE, with attached descriptors. Variables with
// the same meaning have systemd's names, so that systemd can act as keeper.
const (
	varStore      = "FDSTORE"            // 1: keep the attached descriptors
	varName       = "FDNAME"             // name of the descriptors
	varRemove     = "FDSTOREREMOVE"      // 1: close the descriptors of a name
	varReady      = "READY"              // 1: requests are being answered
	varBeat       = "WATCHDOG"           // 1: still alive
	varStatus     = "STATUS"             // one line: why this worker will not take over
	varStandby    = "EPOCHFS_STANDBY"    // 1: all is prepared, SERVE may be sent
	varConnection = "EPOCHFS_CONNECTION" // number of the FUSE connection
	varDir        = "EPOCHFS_DIR"        // directory of the mount
	varServe      = "EPOCHFS_SERVE"      // 1, from the keeper: no other process serves, begin
	varAgain      = "EPOCHFS_AGAIN"      // 1, from the keeper: ask the kernel again for unanswered requests
	varKeeper     = "EPOCHFS_KEEPER"     // from the keeper: its process id
)

// maxMessage bounds a message, in bytes.
const maxMessage = 8 << 10

// message is one notification.
type message struct {
	vars map[string]string
	fds  []int
}

// newMessage returns a message of alternating names and values.
func newMessage(pairs ...string) message {
	m := message{vars: make(map[string]string, len(pairs)/2)}
	for i := 0; i+1 < len(pairs); i += 2 {
		m.vars[pairs[i]] = pairs[i+1]
	}
	return m
}

func (m message) is(name string) bool { return m.vars[name] == "1" }

// encode writes one line for each variable. It replaces line breaks in
// values, which would begin another variable.
func (m message) encode() []byte {
	var b strings.Builder
	for name, value := range m.vars {
		b.WriteString(name + "=" + strings.ReplaceAll(value, "\n", " ") + "\n")
	}
	return []byte(b.String())
}

func decode(text []byte) message {
	m := message{vars: map[string]string{}}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			m.vars[name] = value
		}
	}
	return m
}

// send writes a message to a socket, addressed to to unless to is nil. It
// blocks while the socket's queue of unread messages is full.
func send(socket int, m message, to unix.Sockaddr) error { return sendWith(socket, m, to, 0) }

func sendWith(socket int, m message, to unix.Sockaddr, flags int) error {
	var rights []byte
	if len(m.fds) > 0 {
		rights = unix.UnixRights(m.fds...)
	}
	for {
		err := unix.Sendmsg(socket, m.encode(), rights, to, flags|unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// ErrGone is returned if the other end of a socket is closed, because its
// process has ended.
var ErrGone = fmt.Errorf("the other process has ended: %w", unix.ECONNRESET)

// receive blocks until a message arrives. The message's descriptors belong
// to the caller, and no child inherits them.
func receive(socket int) (message, error) { return receiveInto(socket, make([]byte, maxMessage)) }

// receiveInto does that with a buffer, of maxMessage bytes, that can be used for
// the next message.
func receiveInto(socket int, buf []byte) (message, error) {
	oob := make([]byte, unix.CmsgSpace(4*8))
	var n, nOOB, flags int
	var err error
	for {
		n, nOOB, flags, _, err = unix.Recvmsg(socket, buf, oob, unix.MSG_CMSG_CLOEXEC)
		// The other end has closed with unread messages of ours. Its own
		// earlier messages can still be read.
		if err != unix.EINTR && err != unix.ECONNRESET {
			break
		}
	}
	if err != nil {
		return message{}, err
	}
	fds := rights(oob[:nOOB])
	if n == 0 {
		closeAll(fds)
		return message{}, ErrGone
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(fds)
		return message{vars: map[string]string{}}, nil // no known variables
	}
	m := decode(buf[:n])
	m.fds = fds
	return m, nil
}

func rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if some, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
