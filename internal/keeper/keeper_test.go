package keeper

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

func kill(t *testing.T, pid int, s unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// Killed from outside, at any time: the next takes over without delay, as
// often as it takes.
func TestKilled(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "serves")
	began := time.Now()
	for n := 1; n <= 20; n++ {
		kill(t, k.until(n, "ready").pid, unix.SIGKILL)
	}
	k.until(21, "ready")
	if took := time.Since(began); took > 2*time.Minute { // and not 20 pauses, of up to a minute
		t.Errorf("20 times took %v", took)
	}
	k.unmount()
}

// A worker that cannot serve is tried again, later each time, until the
// connection is given up: it is aborted, and nobody holds it.
func TestGivesUp(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	for _, does := range []string{"dies", "refuses", "sleeps", "dies serving", "sleeps serving", "panics", "hangs"} {
		t.Run(does, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			k := startKeeper(t, "2s,1s,6s,1ms", "panics", does)
			if code := k.end(); code != 1 {
				t.Errorf("the keeper's code is %d", code)
			}
			if took := time.Since(began); took < 6*time.Second || took > 2*time.Minute {
				t.Errorf("given up after %v", took)
			}
			if text, err := os.ReadFile(filepath.Join(k.dir, "connections/7/abort")); string(text) != "1" {
				t.Errorf("not aborted: %q, %v", text, err)
			}
			if n, err := k.device.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("somebody holds the connection: %d, %v", n, err)
			}
			all := k.noted("started " + does)
			if len(all) < 2 || len(all) > 14 {
				t.Errorf("%d were started", len(all))
			}
			if n := len(k.noted("serves")); n > 2 { // others are prepared meanwhile
				all = k.noted("serves")[1:]
			}
			for i := 1; i < len(all); i++ {
				if gap, least := all[i].at.Sub(all[i-1].at), leastPause<<i; gap < least {
					t.Errorf("worker %d came %v after the one before, not %v", i, gap, least)
				}
			}
		})
	}
}

// Where no request waits, nobody is helped by an end.
func TestNobodyWaits(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	t.Parallel()
	k := startKeeper(t, "1h,1s,8s,1ms", "panics", "dies", "dies", "dies", "dies", "dies", "dies", "dies", "serves")
	k.waiting(0)
	k.until(2, "ready")
	kill(t, k.serving(), unix.SIGSTOP)
	stopped := k.serving()
	time.Sleep(10 * time.Second) // nothing is to happen, not even that it is given up
	if now := k.serving(); now != stopped {
		t.Errorf("process %d serves and not %d", now, stopped)
	}
	k.waiting(1)
	k.poll("another serves", func() bool { now := k.serving(); return now != 0 && now != stopped })
	k.unmount()
	if code := k.end(); code != 0 {
		t.Errorf("code %d", code)
	}
}

// A first worker may take its time: there is nothing to give up before it
// has mounted.
func TestLateMount(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	t.Parallel()
	k := startKeeper(t, "6s,1h,6s,1ms", "late", "serves")
	first := k.until(1, "ready")
	kill(t, first.pid, unix.SIGKILL)
	k.until(2, "ready")
	k.unmount()
}

// When all was stopped, as in a container that is paused, nobody is to
// blame for having been silent.
func TestStoppedTogether(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	t.Parallel()
	k := startKeeper(t, "1h,3s,1s,1ms", "serves")
	first := k.until(1, "ready")
	k.until(1, "standby")
	k.poll("it has settled", func() bool { return time.Since(first.at) > settled+200*time.Millisecond })
	kill(t, k.cmd.Process.Pid, unix.SIGSTOP)
	kill(t, first.pid, unix.SIGSTOP)
	time.Sleep(6 * time.Second)
	kill(t, k.cmd.Process.Pid, unix.SIGCONT)
	time.Sleep(200 * time.Millisecond) // who is silent may be a little later
	kill(t, first.pid, unix.SIGCONT)
	time.Sleep(settled)
	if now := k.serving(); now != first.pid {
		t.Errorf("process %d serves and not %d", now, first.pid)
	}
	k.unmount()
}

// A restart puts the other binary's worker in the place of the one that
// serves, unless it cannot.
func TestRestart(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	t.Parallel()
	k := startKeeper(t, "5s,1h,2h,1ms", "serves")
	before := k.until(1, "ready").pid
	k.until(1, "standby")
	open := k.descriptors()
	for _, does := range []string{"dies", "refuses", "sleeps"} {
		answer, err := k.restart(does)
		if err != nil || answer.vars[varStatus] == "" {
			t.Errorf("%s: %v, %v", does, answer.vars, err)
		}
		if now := k.serving(); now != before {
			t.Errorf("%s: process %d serves and not %d", does, now, before)
		}
	}
	for range 2 {
		n := len(k.noted("standby"))
		answer, err := k.restart("serves")
		if err != nil || answer.vars[varWorker] == "" || answer.vars[varWorker] == strconv.Itoa(before) {
			t.Fatalf("%v, %v", answer.vars, err)
		}
		if err := unix.Kill(before, 0); err != unix.ESRCH {
			t.Errorf("the old one: %v", err)
		}
		before, _ = strconv.Atoi(answer.vars[varWorker])
		k.until(n+2, "standby") // its own, and its spare's
	}
	k.poll("no descriptor is left open", func() bool { return k.descriptors() == open+1 }) // the older binary's
	k.unmount()
}

// A binary that comes up and does not serve, or not for long, gives its
// place back to the one before it.
func TestOlderBinary(t *testing.T) {
	for _, does := range []string{"dies serving", "panics"} {
		t.Run(does, func(t *testing.T) {
			t.Parallel()
			k := startKeeper(t, unhurried, "serves")
			k.until(1, "ready")
			k.until(1, "standby")
			before := len(k.noted("started serves"))
			answer, err := k.restart(does)
			if refused := answer.vars[varStatus] != ""; err != nil || refused != (does == "dies serving") {
				t.Errorf("%v, %v", answer.vars, err)
			}
			k.poll("the older one serves", func() bool {
				all := k.noted("started serves")
				now := k.serving()
				return len(all) > before && now != 0 && all[len(all)-1].pid >= now && k.isOlder(now)
			})
			if n := len(k.noted("started " + does)); n > unfit+1 {
				t.Errorf("the newer one was tried %d times", n)
			}
			answer, err = k.restart("serves") // nothing is in its way
			if err != nil || answer.vars[varWorker] == "" {
				t.Errorf("%v, %v", answer.vars, err)
			}
			k.unmount()
		})
	}
}

func (k *kept) isOlder(pid int) bool {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && filepath.Base(exe) != "newer"
}

// A signal goes on to the worker.
func TestSignal(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "serves")
	k.until(1, "ready")
	k.until(1, "standby")
	kill(t, k.cmd.Process.Pid, unix.SIGTERM)
	k.until(1, "terminated")
	k.unmount()
	if code := k.end(); code != 4 { // the worker's
		t.Errorf("code %d", code)
	}
}

// One that finds no worker is for the next; the second ends the connection.
func TestSignalWithoutWorker(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "panics", "sleeps")
	k.until(2, "started")
	k.poll("none serves", func() bool { return k.serving() == 0 })
	kill(t, k.cmd.Process.Pid, unix.SIGTERM)
	k.poll("the signal is noted", func() bool { return k.serving() == 0 })
	kill(t, k.until(2, "started").pid, unix.SIGCONT) // it is alive
	go func() {                                      // until it has ended: two that come together count as one
		for k.cmd.Process.Signal(unix.SIGTERM) == nil {
			time.Sleep(100 * time.Millisecond)
		}
	}()
	if code := k.end(); code != 1 {
		t.Errorf("code %d", code)
	}
}

// One that finds a worker that hangs is for the next, too.
func TestSignalToHungWorker(t *testing.T) {
	tier.Long(t, "waits as long as a keeper does")
	t.Parallel()
	k := startKeeper(t, "1h,300ms,2h,1ms", "serves")
	k.waiting(0)
	first := k.until(1, "ready")
	k.until(1, "standby")
	kill(t, first.pid, unix.SIGSTOP)
	time.Sleep(3 * time.Second) // for what it said last to be heard, and long ago
	kill(t, k.cmd.Process.Pid, unix.SIGTERM)
	if e := k.until(1, "terminated"); e.pid == first.pid {
		t.Error("it was not replaced")
	}
	k.unmount()
	k.end()
}

// A mount that ended took nothing with it, and left nothing.
func TestUnmounted(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, "1h,500ms,2h,1ms", "serves")
	k.waiting(0) // or a silence would be held against it before
	first := k.until(1, "ready")
	k.until(1, "standby")
	kill(t, first.pid, unix.SIGSTOP) // and cannot see it
	k.unmount()
	if code := k.end(); code != 0 {
		t.Errorf("code %d", code)
	}
}

// What is not kept ends with its worker.
func TestNotKept(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "dies")
	if code := k.end(); code != 3 {
		t.Errorf("code %d", code)
	}
}

// Garbage changes nothing, and no descriptor that came with it stays.
func TestGarbage(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "garbage", "serves")
	first := k.until(1, "ready")
	k.until(1, "standby")
	open := k.descriptors()
	text, err := os.Open(filepath.Join(k.dir, "plan"))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	fd := int(text.Fd())
	for _, m := range []message{
		newMessage(varRestart, "1"),
		{vars: map[string]string{varRestart: "1"}, fds: []int{fd}}, // no program
		{vars: map[string]string{varRestart: "1"}, fds: []int{fd, fd}},
		{vars: map[string]string{varStore: "1", varName: Device}, fds: []int{fd}},
		newMessage("what", "ever"),
	} {
		if answer, err := k.ask(m); err != nil || answer.vars[varStatus] == "" {
			t.Errorf("%v: %v, %v", m.vars, answer.vars, err)
		}
	}
	if now := k.serving(); now != first.pid {
		t.Errorf("process %d serves and not %d", now, first.pid)
	}
	k.poll("no descriptor is left open", func() bool { return k.descriptors() <= open })
	kill(t, first.pid, unix.SIGKILL)
	k.until(2, "ready")
	k.unmount()
}

// Without its keeper a worker goes on, one that is not needed ends, and a
// new keeper keeps as well.
func TestOtherKeeper(t *testing.T) {
	t.Parallel()
	k := startKeeper(t, unhurried, "serves")
	first := k.until(1, "ready")
	spare := k.until(1, "standby")
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = k.cmd.Wait()
	if e := k.until(1, "gone"); e.pid != spare.pid {
		t.Errorf("process %d ended and not the spare %d", e.pid, spare.pid)
	}
	k.until(1, "lost")
	run := filepath.Join(k.dir, "run")
	var m Mount
	k.poll("the worker can be asked", func() bool {
		all, err := List(run)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range all {
			m = one
		}
		return len(all) == 1
	})
	if m.Worker != first.pid || m.Keeper != 0 {
		t.Fatalf("%+v", m)
	}
	log, err := os.OpenFile(filepath.Join(k.dir, "log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m, err = m.Rekeep(Start{Sockets: run, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	k.until(1, "adopted")
	kill(t, first.pid, unix.SIGKILL)
	k.until(2, "ready")
	k.poll("another serves", func() bool {
		all, err := List(run)
		return err == nil && len(all) == 1 && all[0].Keeper == m.Keeper && all[0].Worker != 0 && all[0].Worker != first.pid
	})
	k.unmount()
	k.poll("all processes end", func() bool {
		var status unix.WaitStatus
		_, _ = unix.Wait4(m.Keeper, &status, unix.WNOHANG, nil)
		return len(k.processes()) == 0
	})
}

// Nobody reads the log any more: that is no reason to end.
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	k := startKeeperLog(t, w, unhurried, "serves")
	for n := 1; n < 4; n++ {
		kill(t, k.until(n, "ready").pid, unix.SIGKILL)
	}
	k.until(4, "ready")
	k.unmount()
}
