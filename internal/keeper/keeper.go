// Package keeper holds the descriptors that a mount must not lose when its
// process dies, and starts that process again.
//
// The keeper is a process beside the serving process, the worker. It holds
// descriptors: of the FUSE connection, of the memory that contains the
// handle table, and of the locks that mark cached files as in use. It does
// not interpret them. As long as one process has the connection's descriptor
// open, the connection lives, and readers wait instead of failing.
//
//	          keeper                            worker
//	          descriptors: connection,          everything else
//	          memory, locks
//	start     starts it, with a socket    ->    opens the artifact, mounts
//	                                      <-    descriptors, to be kept
//	                                      <-    READY
//	spare     starts another, with the    ->    prepares all it can
//	          descriptors                 <-    STANDBY
//	death     sees it, tells the spare    ->    SERVE: takes the connection
//	                                      <-    READY
//
// Only one worker serves at a time: the next is told to serve only after its
// predecessor has ended, or cannot do anything any more (spent.go). A worker
// that does not start to serve, or dies at once, is tried again after a
// growing pause. A worker that gives no sign of life while requests wait is
// killed. If no worker has served well for a minute (times.giveUp), the
// connection is aborted: an error is better than readers that cannot be
// killed. These rules are in watch.go.
//
// The keeper's own code does nothing else, and allocates next to nothing. A
// program must call Main before it does anything else.
package keeper

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// WorkerName is what a worker calls itself, for ps.
const WorkerName = "epochfs"

// Names under which a worker's descriptors are kept.
const (
	Device = "fuse"   // the connection
	Memory = "memory" // the mount's state; see fs/memory.go
	Lock   = "lock"   // any number of them
)

// keeper is the state of the process. Only one goroutine uses it.
type keeper struct {
	args  []string // of workers
	env   []string
	exe   int // descriptor of the binary that workers run
	older int // descriptor of the previous binary, or -1
	times times
	log   *slog.Logger

	sockets string // directory of the sockets, "" for none

	store      map[string][]int
	connection string // number of the FUSE connection
	dir        string

	serving *worker // answers requests, or is about to
	next    *worker // is being prepared, or is on standby

	looked     time.Time // when watch last ran
	good       time.Time // when the mount was last known to be served well
	failures   int       // consecutive workers that did not serve well
	unprepared int       // consecutive workers that could not be prepared
	notUntil   time.Time // no worker is started, or told to serve, before this time
	told       bool      // whether tellReady has announced the first worker
	sameGroup  bool      // in the caller's process group; false once told
	asked      int       // signals to unmount that arrived while no worker served

	events  chan event
	restart *request // the pending restart, or nil
}

// event is something that happened to a worker.
type event struct {
	from   *worker
	msg    message
	exited bool
	status syscall.WaitStatus
	left   bool // a spent worker has now left the kernel, too
}

// Main runs the keeper's process; newLog makes its log. It returns the exit
// code: the first worker's if that worker never served.
func Main(newLog func(json bool) *slog.Logger) int {
	collectLittle()
	_ = os.WriteFile("/proc/self/comm", []byte("epochfs-keeper"), 0) // for ps
	s, err := takeSetup()
	if err != nil {
		fmt.Fprintln(os.Stderr, "epochfs:", err)
		return 1
	}
	_ = SpareFromOOM() // fails unless root
	SurviveBrokenPipes()
	k := &keeper{
		args: s.args, env: s.env, exe: s.exe, older: -1, times: s.times, log: newLog(s.JSON), sockets: s.Sockets,
		sameGroup: s.Group, store: map[string][]int{}, events: make(chan event, 16), looked: time.Now(), good: time.Now(),
	}
	requests, stopListening := listen(s.Sockets, k.log)
	defer stopListening()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if s.Adopt > 0 {
		k.adopt(s)
	} else if err := k.startFirst(s); err != nil {
		fmt.Fprintln(os.Stderr, "epochfs:", err)
		return 1
	}
	return k.run(requests, signals)
}

// room is how much a keeper's memory may grow before it collects garbage.
const room = 3 << 19

// collectLittle turns the collector off until the memory has grown: a collection
// takes a third of a megabyte, which the runtime keeps, and a keeper makes next to
// no garbage.
func collectLittle() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + room)
	debug.SetGCPercent(-1)
}

// run handles events until the mount or the first worker has ended.
func (k *keeper) run(requests <-chan *request, signals <-chan os.Signal) (code int) {
	timer := time.NewTimer(check)
	for ended := false; !ended; {
		select {
		case e := <-k.events:
			code, ended = k.handle(e)
		case r := <-requests:
			k.answer(r)
		case s := <-signals:
			code, ended = k.signalled(s.(syscall.Signal))
		case <-timer.C:
		}
		if !ended {
			code, ended = k.watch()
		}
		timer.Reset(k.pause())
	}
	return code
}

// handle handles an event. ended reports whether nothing is left to keep.
func (k *keeper) handle(e event) (code int, ended bool) {
	w := e.from
	switch {
	case e.left:
		k.askAgain()
		return 0, false
	case !e.exited:
		k.noted(w, e.msg)
		return 0, false
	}
	if w.own {
		_ = unix.Close(w.exe)
	}
	switch w {
	case k.serving:
		k.serving = nil
		return k.ended(w, e.status)
	case k.next:
		k.next = nil
		k.failedToPrepare(w, how(e.status))
	}
	return 0, false
}

// askAgain makes the serving worker ask the kernel once more for unanswered
// requests. A spent predecessor may have taken a request from the kernel
// after the first time.
func (k *keeper) askAgain() {
	if k.serving != nil {
		_ = sendWith(k.serving.link, newMessage(varAgain, "1"), nil, unix.MSG_DONTWAIT)
	}
}

// noted handles a message from a worker.
func (k *keeper) noted(w *worker, m message) {
	now := time.Now()
	if s := m.vars[varStatus]; s != "" {
		w.status = s
	}
	switch {
	case w == k.next && m.is(varStandby):
		w.standby = true
		k.unprepared = 0
	case w != k.serving: // ignore other workers
	case m.is(varStore):
		name := m.vars[varName]
		k.store[name] = append(k.store[name], m.fds...)
		k.good = now // there was nothing to serve before
		return
	case m.is(varReady):
		w.ready, w.beat = now, now
		k.connection, k.dir = m.vars[varConnection], m.vars[varDir]
		k.tellReady(w)
	case m.is(varBeat):
		w.beat = now
		if w.settled(now) {
			k.good, k.failures = now, 0
		}
	}
	closeAll(m.fds)
}

// tellReady announces that a worker serves, and sends it a signal to unmount
// if one arrived while no worker served.
func (k *keeper) tellReady(w *worker) {
	if !k.told {
		k.told = true
		tellSystemd()
		if k.sameGroup {
			k.sameGroup = false
			_, _ = unix.Setsid() // fails for a group leader, which already has a session
		}
	}
	if k.asked > 0 {
		k.asked = 0
		_ = unix.Kill(w.pid, unix.SIGTERM)
	}
	if r := k.restart; r != nil && r.next == w {
		k.restart = nil
		r.reply(k.about())
	}
}

// signalled forwards a signal to unmount to the serving worker. If no worker
// serves, the next one gets the signal; a second signal ends the connection.
func (k *keeper) signalled(s syscall.Signal) (code int, ended bool) {
	w := k.serving
	if w != nil && !w.hangs(time.Now(), k.times.hang) {
		_ = unix.Kill(w.pid, s)
		return 0, false
	}
	if w != nil {
		w.kill("it hangs, and a signal asked to unmount", k.log)
	}
	k.asked++
	if k.asked > 1 {
		k.giveUp("a signal asked to unmount, and no process serves")
	}
	return 1, k.asked > 1
}

// how describes how a process ended.
func how(s syscall.WaitStatus) string {
	switch {
	case s.Signaled():
		return s.Signal().String()
	case s.Exited():
		return fmt.Sprintf("exit status %d", s.ExitStatus())
	}
	return "unknown"
}

// oomScore marks a process that many others need: the kernel kills processes
// with a higher score first.
const oomScore = "-900"

// SpareFromOOM keeps the kernel from killing this process and its children
// when memory is short. Only root may call it.
func SpareFromOOM() error { return os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) }

// SurviveBrokenPipes keeps this process alive after the reader of its log
// has closed the pipe.
func SurviveBrokenPipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
