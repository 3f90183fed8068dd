package keeper

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// times are the keeper's time limits.
type times struct {
	start  time.Duration // for a worker to be prepared, or to begin
	hang   time.Duration // without a sign of life, while requests wait
	giveUp time.Duration // without a worker that served well, while requests wait
	spare  time.Duration // from the start of one worker to the preparation of the next
}

var defaultTimes = times{start: 20 * time.Second, hang: 10 * time.Second, giveUp: time.Minute, spare: 50 * time.Millisecond}

const (
	// settled is how long a worker must serve to count as working.
	settled = time.Second
	// check is the longest pause between two runs of watch.
	check = time.Second
	// Beat is the interval of a worker's signs of life.
	Beat = 2 * time.Second
	// Pauses before a failed worker is tried again: doubled each time.
	// While another worker serves well, pauses may reach mostUnhurried.
	leastPause, mostPause, mostUnhurried = 10 * time.Millisecond, 5 * time.Second, time.Minute
	// unfit is how many workers of a new binary may fail before the
	// previous binary is used again.
	unfit = 3
)

// ended handles the end of the serving worker.
func (k *keeper) ended(w *worker, status syscall.WaitStatus) (code int, ended bool) {
	if !k.kept() || k.dead() {
		if _, hangs := spent(w.pid); hangs && !k.kept() && k.connection != "" {
			AbortAbandoned(k.connection)
		}
		k.killNext()
		return k.exitCode(status), true
	}
	now := time.Now()
	if r := k.restart; r != nil && r.old == w && w.condemned {
		k.notUntil = now
		return 0, false
	}
	// A worker killed from outside was able to serve, and so is the
	// next.
	killed := !w.ready.IsZero() && status.Signaled() && status.Signal() == syscall.SIGKILL
	if !w.condemned && (killed || w.settled(now)) {
		k.good, k.failures, k.notUntil = now, 0, now
	} else {
		k.failures++
		k.failed(now)
	}
	k.log.Error("the process that served the mount has ended; another takes over",
		"dir", k.dir, "pid", w.pid, "how", how(status), "failures", k.failures)
	if r := k.restart; r != nil && r.next == w {
		k.restart = nil
		k.fallBack()
		r.reply(newMessage(varStatus, "it did not begin to serve: "+how(status)))
	}
	return 0, false
}

// exitCode returns the keeper's exit code if the mount ended with its
// worker.
func (k *keeper) exitCode(s syscall.WaitStatus) int {
	switch {
	case s.Exited():
		return s.ExitStatus()
	case k.kept(): // unmounted, and the worker did not notice
		return 0
	}
	return 128 + int(s.Signal())
}

// failedToPrepare handles the end of a worker that was being prepared.
func (k *keeper) failedToPrepare(w *worker, how string) {
	if w.status == "" {
		w.status = "it ended before it could serve: " + how
	}
	if r := k.restart; r != nil && r.next == w {
		k.restart = nil
		r.reply(newMessage(varStatus, w.status))
		return
	}
	k.unprepared++
	k.failed(time.Now())
	if n := k.unprepared; n&(n-1) == 0 { // not every time: it may go on for days
		k.log.Error("a process that would take over cannot", "dir", k.dir, "cause", w.status, "failures", n)
	}
}

// failed delays the next worker after a failure.
func (k *keeper) failed(now time.Time) {
	n, most := k.failures+k.unprepared, mostPause
	if k.serving != nil {
		most = mostUnhurried
	}
	k.notUntil = now.Add(min(leastPause<<min(n-1, 20), most))
	if n >= unfit {
		k.fallBack()
	}
}

// fallBack restores the binary from before the last restart.
func (k *keeper) fallBack() {
	if k.older < 0 {
		return
	}
	k.log.Error("the new binary does not serve; the one before it is taken again", "dir", k.dir)
	k.killNext()
	_ = unix.Close(k.exe)
	k.exe, k.older = k.older, -1
	k.notUntil = time.Now()
}

// watch performs what is due. ended reports that the connection was given
// up, or ended while no worker served.
func (k *keeper) watch() (code int, ended bool) {
	now := time.Now()
	k.excuse(now)
	if !k.kept() {
		return 0, false
	}
	if k.serving == nil && k.dead() {
		k.killNext()
		return 0, true
	}
	k.serving.hangUp()
	k.next.hangUp()
	k.watchServing(now)
	k.watchNext(now)
	switch {
	case k.serving.alive(now, k.times.hang): // its next sign of life updates good
	case !k.waiting(): // giving up would help no reader
		k.good = now
	case now.Sub(k.good) > k.times.giveUp:
		k.giveUp("no process could serve the mount")
		return 1, true
	}
	return 0, false
}

// excuse extends the workers' deadlines if this process itself was stopped
// for a while, as all of a container may be: workers that were silent
// meanwhile are not to blame.
func (k *keeper) excuse(now time.Time) {
	away := now.Sub(k.looked)
	k.looked = now
	if away < 3*check {
		return
	}
	k.good = k.good.Add(away)
	for _, w := range []*worker{k.serving, k.next} {
		if w != nil {
			w.told, w.beat = w.told.Add(away), w.beat.Add(away)
		}
	}
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
	case w.hangs(now, k.times.hang) && (k.waiting() || k.dead()):
		w.kill("it hangs", k.log)
	}
}

func (k *keeper) watchNext(now time.Time) {
	switch w := k.next; {
	case w == nil:
		due := k.serving == nil || k.serving.wantsSpare(now, k.times.spare)
		if due && !now.Before(k.notUntil) {
			k.startNext(k.exe)
		}
	case !w.standby && now.Sub(w.told) > k.times.start:
		w.status = "it was not prepared in time"
		w.kill(w.status, k.log)
	}
}

// pause returns how long nothing will become due.
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

// promote tells the prepared worker to serve.
func (k *keeper) promote(now time.Time) {
	w := k.next
	k.serving, k.next = w, nil
	w.told = now
	if w.own {
		if k.older >= 0 {
			_ = unix.Close(k.older)
		}
		k.older, k.exe, w.own = k.exe, w.exe, false
	}
	// If the worker is dead already, the event of its end follows.
	_ = send(w.link, newMessage(varServe, "1"), nil)
}

// killNext kills the prepared worker, and returns when it has ended.
func (k *keeper) killNext() {
	w := k.next
	if w == nil {
		return
	}
	k.next = nil
	w.kill("", k.log)
	w.reap()
	if r := k.restart; r != nil && r.next == w {
		k.restart = nil
		r.reply(newMessage(varStatus, "it was not waited for"))
	}
}
