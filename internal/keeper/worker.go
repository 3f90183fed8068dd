package keeper

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// worker is a process that serves, or is prepared to.
type worker struct {
	pid   int
	link  int  // the keeper's end of the socket
	exe   int  // descriptor of its binary
	own   bool // no other worker runs this exe: it was sent with a restart
	first bool // it mounts by itself and is not told to serve
	child bool

	told      time.Time // when it was started, or told to serve
	ready     time.Time // when it began to serve
	beat      time.Time // last sign of life
	standby   bool      // it is prepared
	status    string    // its last STATUS
	condemned bool      // killed by the keeper
	hungUp    bool      // spent, and its socket shut down
	done      chan struct{}
}

// settled reports whether the worker has served for a while.
func (w *worker) settled(now time.Time) bool {
	return !w.ready.IsZero() && now.Sub(w.ready) >= settled
}

// alive reports whether the worker serves and has given a sign of life
// within hang.
func (w *worker) alive(now time.Time, hang time.Duration) bool {
	return w != nil && !w.ready.IsZero() && now.Sub(w.beat) <= hang
}

// hangs reports whether the worker has begun to serve but given no sign of
// life within hang.
func (w *worker) hangs(now time.Time, hang time.Duration) bool {
	return !w.ready.IsZero() && now.Sub(w.beat) > hang
}

// wantsSpare reports whether it is time to prepare the worker's successor.
func (w *worker) wantsSpare(now time.Time, after time.Duration) bool {
	return !w.ready.IsZero() && now.Sub(w.ready) >= after
}

// kill kills the worker. An event reports its end.
func (w *worker) kill(why string, log *slog.Logger) {
	if w.condemned {
		return
	}
	w.condemned = true
	if why != "" {
		log.Error("a process of the mount is killed", "pid", w.pid, "cause", why)
	}
	_ = unix.Kill(w.pid, unix.SIGKILL)
}

// reap waits a bounded time for the end of a killed worker.
func (w *worker) reap() {
	select {
	case <-w.done:
	case <-time.After(time.Second):
	}
}

// crashEnv is the variable with which tests kill workers at a named step;
// see internal/crashpoint. Of several steps, separated by commas, each
// worker gets the next.
const crashEnv = "EPOCHFS_CRASH_AT="

// shiftCrash removes the first step from the environment.
func shiftCrash(env []string) {
	for i, kv := range env {
		if v, ok := strings.CutPrefix(kv, crashEnv); ok {
			_, rest, _ := strings.Cut(v, ",")
			env[i] = crashEnv + rest
		}
	}
}

// start starts a worker. It inherits stdin, stdout and stderr, its end of a
// new socket, and then files; names has a name for each.
func (k *keeper) start(exe int, stderr int, names []string, files []int, env ...string) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pair[1])
	attr := &syscall.ProcAttr{
		Env:   append(append([]string{}, k.env...), append(env, namesEnv+"="+strings.Join(append([]string{linkName}, names...), ":"))...),
		Files: []uintptr{0, 1, uintptr(stderr), uintptr(pair[1])},
		Sys:   &syscall.SysProcAttr{Setsid: !k.sameGroup},
	}
	for _, fd := range files {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(exe), k.args, attr)
	shiftCrash(k.env)
	if err != nil {
		_ = unix.Close(pair[0])
		return nil, err
	}
	w := &worker{pid: pid, link: pair[0], exe: exe, child: true, told: time.Now(), done: make(chan struct{})}
	k.follow(w)
	return w, nil
}

// follow forwards a worker's messages as events, then its end. The worker's
// socket closes with the worker, so no message is lost.
func (k *keeper) follow(w *worker) {
	_ = send(w.link, newMessage(varKeeper, strconv.Itoa(unix.Getpid())), nil)
	go func() {
		for buf := make([]byte, maxMessage); ; {
			m, err := receiveInto(w.link, buf)
			if err != nil {
				break
			}
			k.events <- event{from: w, msg: m}
		}
		gone := make(chan syscall.WaitStatus, 1)
		go func() { gone <- w.wait() }()
		status, left := w.ended(gone)
		_ = unix.Close(w.link)
		k.sweep(w.pid)
		close(w.done)
		k.events <- event{from: w, exited: true, status: status}
		if left {
			<-gone
			k.events <- event{from: w, left: true}
		}
	}()
}

// Pauses between checks of a worker that is about to end.
const firstLook, nextLooks = 2 * time.Millisecond, 20 * time.Millisecond

// ended returns how a worker ended. It blocks until the worker has ended or
// is spent; left reports whether a spent thread is still in the kernel.
func (w *worker) ended(gone <-chan syscall.WaitStatus) (status syscall.WaitStatus, left bool) {
	for look := firstLook; ; look = nextLooks {
		select {
		case status := <-gone:
			return status, false
		case <-time.After(look):
		}
		if status, ok := spent(w.pid); ok {
			return status, true
		}
	}
}

// hangUp shuts down the socket of a spent worker, which a thread still in
// the kernel keeps open.
func (w *worker) hangUp() {
	if w == nil || w.hungUp {
		return
	}
	if _, ok := spent(w.pid); ok {
		w.hungUp = true
		_ = unix.Shutdown(w.link, unix.SHUT_RD)
	}
}

// sweep removes the sockets of a process that ended without removing them.
func (k *keeper) sweep(pid int) {
	if k.sockets == "" {
		return
	}
	for _, suffix := range []string{statusSuffix, orphanSuffix, newSuffix} {
		_ = os.Remove(filepath.Join(k.sockets, strconv.Itoa(pid)+suffix))
	}
}

// wait blocks until all threads of the process have ended.
func (w *worker) wait() (status syscall.WaitStatus) {
	if w.child {
		for {
			if _, err := syscall.Wait4(w.pid, &status, 0, nil); err != syscall.EINTR {
				return status
			}
		}
	}
	// The end of a process that is not a child can be observed, but not
	// its status.
	pidfd, err := unix.PidfdOpen(w.pid, 0)
	if err != nil {
		return syscall.WaitStatus(unix.SIGKILL)
	}
	defer unix.Close(pidfd)
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1); err != unix.EINTR {
			return syscall.WaitStatus(unix.SIGKILL)
		}
	}
}

// startFirst starts the worker that mounts. It closes the descriptors that
// only the worker needs, because other processes wait for their last copy to
// close.
func (k *keeper) startFirst(s *given) error {
	var names []string
	var files []int
	if s.Ready > 0 {
		names, files = []string{readyName}, []int{s.Ready}
	}
	w, err := k.start(k.exe, s.Stderr, names, files)
	if err != nil {
		return err
	}
	closeAll(files)
	if s.Stderr > 2 {
		_ = unix.Close(s.Stderr)
	}
	w.first = true
	k.serving = w
	return nil
}

// startNext starts a worker that prepares itself to take over.
func (k *keeper) startNext(exe int) {
	env := oneProcessor(k.env)
	if k.serving != nil && k.restart != nil {
		env = append(env, chosenEnv+"=1")
	}
	w, err := k.start(exe, 2, []string{Device, Memory}, []int{k.store[Device][0], k.store[Memory][0]}, env...)
	if err != nil {
		w = &worker{status: "it cannot be started: " + err.Error()}
	}
	if r := k.restart; r != nil && r.next == nil {
		r.next, w.own = w, true
	}
	if err != nil {
		if w.own {
			_ = unix.Close(exe)
		}
		k.failedToPrepare(w, "")
		return
	}
	k.next = w
}
