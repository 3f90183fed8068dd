// Package keeper holds what a mount must not lose when the process that
// serves it dies, and starts that process anew.
//
// The keeper is a process beside the one that serves, the worker. It holds
// descriptors: the FUSE connection's, that of the memory in which the
// handle table lies, and those whose locks say that cached files are in
// use. It knows nothing of what they are for. As long as one process has
// the connection's descriptor open the connection lives, and readers wait
// instead of failing.
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
// Only one worker serves at a time: the next is told to begin when the one
// before it has ended, or cannot do anything any more (spent.go). A worker that
// does not come up, or dies at once, is tried again, later each time. One that
// gives no sign of life while requests wait is killed. When nothing has worked for a minute (times.giveUp),
// the connection is aborted: an error is better than readers that nobody can
// kill. watch.go has these rules.
//
// The keeper's own code does no more than this, and allocates next to
// nothing. A program must run it before anything else (Main).
package keeper

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Names under which a worker has descriptors kept.
const (
	Device = "fuse"   // the connection
	Memory = "memory" // what a new worker could not know
	Lock   = "lock"   // any number of them
)

// keeper is the state of the process. All of it belongs to one goroutine.
type keeper struct {
	args  []string // of workers
	env   []string
	exe   int // descriptor of the binary that workers run
	older int // of the one before, or -1
	times times
	log   *slog.Logger

	sockets string // directory of sockets, "" for none

	store      map[string][]int
	connection string // number of the FUSE connection
	dir        string

	serving *worker // answers requests, or is about to
	next    *worker // is being prepared, or waits

	looked     time.Time // when watch did so last
	good       time.Time // when all was last seen to be well
	failures   int       // workers in a row that did not serve well
	unprepared int       // workers in a row that could not be prepared
	notUntil   time.Time // no worker is started, or told to serve, before
	told       bool      // that the first worker serves
	sameGroup  bool      // until then
	asked      int       // signals that asked to unmount and found no worker

	events  chan event
	restart *request // who waits for the next worker to take over
}

// event is something that happened to a worker.
type event struct {
	from   *worker
	msg    message
	exited bool
	status syscall.WaitStatus
	left   bool // what was left of it after its end is gone, too
}

// Main is the keeper's process; newLog makes its log, whose lines have that
// form. It returns its exit code: the first worker's where that did not
// come to serve.
func Main(newLog func(json bool) *slog.Logger) int {
	debug.SetGCPercent(20)
	_ = os.WriteFile("/proc/self/comm", []byte("epochfs-keeper"), 0) // for ps
	s, err := takeSetup()
	if err != nil {
		fmt.Fprintln(os.Stderr, "epochfs:", err)
		return 1
	}
	_ = SpareFromOOM() // others than root go without
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

// run waits for what happens and does what follows, until the mount or
// the first worker has ended.
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

// handle notes an event. ended says that there is nothing left to keep.
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

// askAgain has the serving worker ask the kernel once more for requests that
// nobody has answered. What was left of the worker before may have taken one
// from the kernel after the first time.
func (k *keeper) askAgain() {
	if k.serving != nil {
		_ = sendWith(k.serving.link, newMessage(varAgain, "1"), nil, unix.MSG_DONTWAIT)
	}
}

// noted takes in what a worker says.
func (k *keeper) noted(w *worker, m message) {
	now := time.Now()
	if s := m.vars[varStatus]; s != "" {
		w.status = s
	}
	switch {
	case w == k.next && m.is(varStandby):
		w.standby = true
		k.unprepared = 0
		debug.FreeOSMemory() // what it took to start one is not kept until the next
	case w != k.serving: // what others say does not count
	case m.is(varStore):
		name := m.vars[varName]
		k.store[name] = append(k.store[name], m.fds...)
		k.good = now // it had nothing to serve before
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

// tellReady passes on that a worker serves, and gives it the signals that
// found none.
func (k *keeper) tellReady(w *worker) {
	if !k.told {
		k.told = true
		tellSystemd()
		if k.sameGroup {
			k.sameGroup = false
			_, _ = unix.Setsid() // who leads a group has a session already
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

// signalled passes on a signal that asks to unmount. Where no worker is
// there to obey, the next one will; a second signal ends the connection.
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

// how a process ended, in words.
func how(s syscall.WaitStatus) string {
	switch {
	case s.Signaled():
		return s.Signal().String()
	case s.Exited():
		return fmt.Sprintf("exit status %d", s.ExitStatus())
	}
	return "unknown"
}

// oomScore is that of a process that many others need: the kernel takes
// those first.
const oomScore = "-900"

// SpareFromOOM keeps the kernel from killing this process, and those it
// starts, when memory is short. Root only.
func SpareFromOOM() error { return os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) }

// SurviveBrokenPipes keeps this process alive when nobody reads its log
// any more.
func SurviveBrokenPipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
