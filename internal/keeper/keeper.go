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
// before it has been waited for. A worker that does not come up is tried
// again, later each time. One that gives no sign of life while requests
// wait is killed. When nothing has worked for giveUpAfter, the connection
// is aborted: an error is better than readers that nobody can kill.
//
// The keeper's own code does no more than this, and allocates next to
// nothing. A program must run it before anything else (Main).
package keeper

import (
	"fmt"
	"io"
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

// times are what the keeper goes by.
type times struct {
	start  time.Duration // for a worker to be prepared, or to begin
	hang   time.Duration // without a sign of life, while requests wait
	giveUp time.Duration // without a worker that served
	spare  time.Duration // from the beginning of one worker to the preparation of the next
}

var defaultTimes = times{start: 20 * time.Second, hang: 10 * time.Second, giveUp: time.Minute, spare: 50 * time.Millisecond}

const (
	// settled is how long a worker serves until it counts as one that can.
	settled = time.Second
	// check is how often the keeper looks at all by itself.
	check = time.Second
	// Beat is how often a worker should give a sign of life.
	Beat = 2 * time.Second
	// Pauses before a worker that failed is tried again: doubled each time.
	leastPause, mostPause = 10 * time.Millisecond, 5 * time.Second
	// unfit is how many workers of a new binary may fail before the one
	// before it is taken again.
	unfit = 3
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

	began    time.Time
	lastGood time.Time // when a worker was last known to serve
	failures int       // workers in a row that failed
	notUntil time.Time // no worker is started, or told to serve, before
	told     bool      // that the first worker serves
	asked    int       // signals that asked to unmount and found no worker

	events  chan event
	restart *request // who waits for the next worker to take over
}

// event is something that happened to a worker.
type event struct {
	from   *worker
	msg    message
	exited bool
	status syscall.WaitStatus
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
	k := &keeper{
		args: s.args, env: s.env, exe: s.exe, older: -1, times: s.times, log: newLog(s.JSON), sockets: s.Sockets,
		store: map[string][]int{}, events: make(chan event, 16), began: time.Now(), lastGood: time.Now(),
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
func (k *keeper) run(requests <-chan *request, signals <-chan os.Signal) int {
	timer := time.NewTimer(check)
	for {
		select {
		case e := <-k.events:
			if code, ended := k.handle(e); ended {
				return code
			}
		case r := <-requests:
			k.answer(r)
		case s := <-signals:
			if k.signalled(s.(syscall.Signal)) {
				return 1
			}
		case <-timer.C:
		}
		if k.watch() {
			return 1
		}
		timer.Reset(k.pause())
	}
}

// handle notes an event. ended says that there is nothing left to keep.
func (k *keeper) handle(e event) (code int, ended bool) {
	w := e.from
	if !e.exited {
		k.noted(w, e.msg)
		return 0, false
	}
	w.gone = true
	switch w {
	case k.serving:
		k.serving = nil
		return k.ended(w, e.status)
	case k.next:
		k.next = nil
		k.failedToPrepare(w, e.status)
	}
	return 0, false
}

// noted takes in what a worker says.
func (k *keeper) noted(w *worker, m message) {
	now := time.Now()
	switch {
	case m.is(varStore) && w == k.serving:
		name := m.vars[varName]
		k.store[name] = append(k.store[name], m.fds...)
		m.fds = nil
	case m.is(varRemove) && w == k.serving:
		closeAll(k.store[m.vars[varName]])
		delete(k.store, m.vars[varName])
	case m.is(varReady):
		w.ready, w.beat = now, now
		k.connection, k.dir = m.vars[varConnection], m.vars[varDir]
		k.tellReady(w)
	case m.is(varBeat):
		w.beat = now
	case m.is(varStandby):
		w.standby = true
		debug.FreeOSMemory() // what it took to start one is not kept until the next
	}
	closeAll(m.fds)
	if s := m.vars[varStatus]; s != "" {
		w.status = s
	}
	if w == k.serving && w.settled(now) {
		k.lastGood, k.failures = now, 0
	}
}

// tellReady passes on that a worker serves, and gives it the signals that
// found none.
func (k *keeper) tellReady(w *worker) {
	if !k.told {
		k.told = true
		tellSystemd()
	}
	if k.asked > 0 {
		k.asked = 0
		_ = unix.Kill(w.pid, unix.SIGTERM)
	}
	k.replyTo(w)
}

// kept says whether there is a connection that can go on without its
// worker.
func (k *keeper) kept() bool { return len(k.store[Device]) > 0 && len(k.store[Memory]) > 0 }

// ended decides what the end of the serving worker means.
func (k *keeper) ended(w *worker, status syscall.WaitStatus) (code int, ended bool) {
	if !k.kept() || k.dead() {
		k.killNext()
		return status.ExitStatus() & 0xff, true
	}
	now := time.Now()
	if r := k.restart; r != nil && r.old == w && w.condemned {
		k.notUntil = now
		return 0, false
	}
	// Killed from outside: it can serve, and so can the next.
	killed := !w.ready.IsZero() && !w.condemned && status.Signaled() && status.Signal() == syscall.SIGKILL
	if killed || w.settled(now) {
		k.lastGood, k.failures, k.notUntil = now, 0, now
	} else {
		k.failed(now)
	}
	k.log.Error("the process that served the mount has ended; another takes over",
		"dir", k.dir, "pid", w.pid, "how", how(status), "failures", k.failures)
	return 0, false
}

// failed notes that a worker did not come up, or not for long.
func (k *keeper) failed(now time.Time) {
	k.failures++
	k.notUntil = now.Add(min(leastPause<<min(k.failures-1, 20), mostPause))
	if k.failures >= unfit && k.older >= 0 {
		k.log.Error("the new binary does not serve; the one before it is taken again", "dir", k.dir)
		_ = unix.Close(k.exe)
		k.exe, k.older = k.older, -1
	}
}

func (k *keeper) failedToPrepare(w *worker, status syscall.WaitStatus) {
	if w.status == "" {
		w.status = "it ended before it could serve: " + how(status)
	}
	if r := k.restart; r != nil && r.next == w {
		k.restart = nil
		r.reply(newMessage(varStatus, w.status))
		return
	}
	k.failed(time.Now())
	k.log.Error("a process that would take over cannot", "dir", k.dir, "cause", w.status, "failures", k.failures)
}

// watch does what has become due. ended says that the connection was
// given up, or has ended while its worker hung.
func (k *keeper) watch() (ended bool) {
	if !k.kept() {
		return false
	}
	now := time.Now()
	if k.serving == nil && k.dead() {
		k.killNext()
		return true
	}
	k.watchServing(now)
	k.watchNext(now)
	if k.serving != nil && k.serving.settled(now) && k.serving.alive(now, k.times.hang) {
		k.lastGood = now
	}
	// Where nobody waits nobody is helped.
	if now.Sub(k.lastGood) > k.times.giveUp && k.waiting() && !(k.serving != nil && k.serving.alive(now, k.times.hang)) {
		k.giveUp("no process could serve the mount")
		return true
	}
	return false
}

func (k *keeper) watchServing(now time.Time) {
	w := k.serving
	switch {
	case w == nil:
		if k.next != nil && k.next.standby && !now.Before(k.notUntil) {
			k.promote(now)
		}
	case w.ready.IsZero():
		if !w.first && now.Sub(w.told) > k.times.start {
			w.kill("it does not begin", k.log)
		}
	case k.restart != nil && k.restart.old == w && k.next != nil && k.next.standby:
		w.kill("", k.log) // the new one is prepared
	case !w.alive(now, k.times.hang) && (k.waiting() || k.dead()):
		w.kill("it hangs", k.log)
	}
}

func (k *keeper) watchNext(now time.Time) {
	switch w := k.next; {
	case w == nil:
		if k.serving == nil && !now.Before(k.notUntil) || k.serving != nil && k.serving.wantsSpare(now, k.times.spare) && !now.Before(k.notUntil) {
			k.startNext(k.exe)
		}
	case !w.standby && now.Sub(w.told) > k.times.start:
		w.status = "it was not prepared in time"
		w.kill(w.status, k.log)
	}
}

// pause is how long nothing will become due.
func (k *keeper) pause() time.Duration {
	now := time.Now()
	d := check
	if now.Before(k.notUntil) {
		d = min(d, k.notUntil.Sub(now))
	}
	if w := k.serving; w != nil && k.next == nil && k.kept() && !w.ready.IsZero() {
		if wait := w.ready.Add(k.times.spare).Sub(now); wait > 0 {
			d = min(d, wait)
		}
	}
	return max(d, time.Millisecond)
}

// promote tells the prepared worker to begin.
func (k *keeper) promote(now time.Time) {
	w := k.next
	k.serving, k.next = w, nil
	w.told = now
	if w.exe != k.exe {
		if k.older >= 0 {
			_ = unix.Close(k.older)
		}
		k.older, k.exe = k.exe, w.exe
	}
	// Should it be dead already, its end follows.
	_ = send(w.link, newMessage(varServe, "1"), nil)
}

func (k *keeper) killNext() {
	if k.next != nil {
		k.next.kill("", k.log)
		k.next.reap()
	}
}

// signalled passes on a signal that asks to unmount. Where no worker is
// there to obey, the second one ends the connection.
func (k *keeper) signalled(s syscall.Signal) (ended bool) {
	if k.serving != nil {
		_ = unix.Kill(k.serving.pid, s)
		return false
	}
	k.asked++
	if k.asked > 1 {
		k.giveUp("a signal asked to unmount, and no process serves")
	}
	return k.asked > 1
}

// dead says that the connection has ended: it was unmounted or aborted.
func (k *keeper) dead() bool {
	fds := k.store[Device]
	if len(fds) == 0 {
		return true
	}
	p := []unix.PollFd{{Fd: int32(fds[0])}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// control is a file of the connection's in the kernel's file system for
// that.
func (k *keeper) control(name string) string {
	return "/sys/fs/fuse/connections/" + k.connection + "/" + name
}

// waiting says whether requests wait for an answer, or that cannot be
// known.
func (k *keeper) waiting() bool {
	f, err := os.Open(k.control("waiting"))
	if err != nil {
		return true
	}
	defer f.Close()
	var n int
	_, err = fmt.Fscan(io.LimitReader(f, 16), &n)
	return err != nil || n > 0
}

// giveUp ends the connection: who waits gets an error. Without the
// kernel's switch it ends when the last descriptor is closed, ours.
func (k *keeper) giveUp(why string) {
	k.log.Error("the mount is given up", "dir", k.dir, "cause", why)
	_ = os.WriteFile(k.control("abort"), []byte("1"), 0)
	for _, w := range []*worker{k.serving, k.next} {
		if w != nil {
			w.kill("", k.log)
		}
	}
	for _, fds := range k.store {
		closeAll(fds)
	}
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
