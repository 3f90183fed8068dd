package keeper

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary runs itself as keeper, and as workers that serve nothing
// and behave as a plan says. Their connection is a FIFO: it is dead when the
// test stops reading. What happens is written to a diary.

const patience = time.Minute

func TestMain(m *testing.M) {
	switch {
	case Is():
		connections = filepath.Join(os.Args[len(os.Args)-1], "connections")
		os.Exit(Main(func(bool) *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }))
	case len(os.Args) == 3 && os.Args[1] == "worker":
		if err := fakeWorker(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(7)
		}
		os.Exit(0)
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // they wait, most of the time
	os.Exit(m.Run())
}

// fake is one worker.
type fake struct {
	dir    string
	link   *Link
	device *os.File
}

// note writes a line of the diary.
func (f *fake) note(what string) {
	w, err := os.OpenFile(filepath.Join(f.dir, "diary"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	fmt.Fprintln(w, os.Getpid(), time.Now().UnixNano(), what)
}

// behaviour is what this worker is to do: the first line of the plan that
// is left, or the last. A plan beside the binary is for that binary.
func (f *fake) behaviour() string {
	exe, _ := os.Readlink("/proc/self/exe")
	plan := exe + ".plan"
	if _, err := os.Stat(plan); err != nil {
		plan = filepath.Join(f.dir, "plan")
	}
	text, err := os.ReadFile(plan)
	if err != nil {
		panic(err)
	}
	first, rest, more := strings.Cut(string(text), "\n")
	if more {
		if err := os.WriteFile(plan, []byte(rest), 0o600); err != nil {
			panic(err)
		}
	}
	return first
}

func fakeWorker(dir string) error {
	f := &fake{dir: dir}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	var err error
	if f.link, err = Join(); err != nil {
		return err
	}
	do := f.behaviour()
	f.note("started " + do)
	switch do {
	case "dies":
		os.Exit(3)
	case "refuses":
		f.link.Refuse(fmt.Errorf("it is\nnot for me"))
		os.Exit(3)
	case "sleeps":
		select {}
	case "late":
		time.Sleep(8 * time.Second)
	}
	if f.device = f.link.Inherited(Device); f.device == nil {
		if err := f.keep(); err != nil {
			return err
		}
	} else {
		f.note("standby")
		if err := f.link.Standby(); err != nil {
			f.note("gone")
			return nil
		}
	}
	f.note("serves")
	return f.serve(do, signals)
}

// keep does what a first worker must, and one that has another keeper.
func (f *fake) keep() error {
	if f.device == nil {
		var err error
		if f.device, err = os.OpenFile(filepath.Join(f.dir, "device"), os.O_WRONLY, 0); err != nil {
			return err
		}
	}
	memory, err := os.Create(filepath.Join(f.dir, "memory"))
	if err != nil {
		return err
	}
	if err := f.link.Store(Lock, memory); err != nil {
		return err
	}
	if err := f.link.Store(Device, f.device); err != nil {
		return err
	}
	return f.link.Store(Memory, memory)
}

func (f *fake) serve(do string, signals <-chan os.Signal) error {
	switch do {
	case "dies serving":
		os.Exit(3)
	case "sleeps serving":
		select {}
	case "garbage":
		f.garbage()
	}
	if err := f.link.Serving("/"+f.dir, 7); err != nil {
		return err
	}
	f.note("ready")
	switch do {
	case "panics":
		os.Exit(2)
	case "hangs":
		select {}
	}
	code := 0
	tick := time.NewTicker(50 * time.Millisecond)
	for {
		select {
		case <-tick.C:
			f.link.Alive()
			p := []unix.PollFd{{Fd: int32(f.device.Fd())}}
			if _, err := unix.Poll(p, 0); err == nil && p[0].Revents&unix.POLLERR != 0 {
				os.Exit(code)
			}
		case <-signals:
			f.note("terminated")
			code = 4
		case <-f.link.Lost():
			f.note("lost")
			if err := f.link.Orphan(filepath.Join(f.dir, "run")); err != nil {
				return err
			}
			if err := f.keep(); err != nil {
				return err
			}
			if err := f.link.Serving("/"+f.dir, 7); err != nil {
				return err
			}
			f.note("adopted") // not before: the new keeper must hold the connection
		}
	}
}

// garbage sends what no worker should.
func (f *fake) garbage() {
	null, err := os.Open(os.DevNull)
	if err != nil {
		panic(err)
	}
	fd := int(null.Fd())
	for _, m := range []message{
		newMessage("\x00\xff", "x"),
		newMessage(varServe, "1", varAdopt, "1", varKeeper, "12"),
		newMessage(varStandby, "1"),
		newMessage(varName, strings.Repeat("n", 2*maxMessage)),
		{vars: map[string]string{varBeat: "1"}, fds: []int{fd, fd, fd}},
		{vars: map[string]string{varStore: "1", varName: "many"}, fds: slices.Repeat([]int{fd}, 20)},
		{vars: map[string]string{varStore: "2"}, fds: []int{fd}},
		newMessage(varStore, "1", varName, "none"),
		newMessage(varRemove, "1", varName, "nothing"),
	} {
		if err := f.link.send(m); err != nil {
			panic(err)
		}
	}
	for _, raw := range []string{"=", "\n\n=\n", "no equals sign", strings.Repeat("A=1\n", 3000)} {
		if err := unix.Sendto(f.link.socket, []byte(raw), 0, nil); err != nil {
			panic(err)
		}
	}
}

// kept is a keeper under test.
type kept struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	device *os.File // the test's end of the connection
}

// unhurried are times that never come, but for the spare's: only deaths
// count, however slow the machine is.
const unhurried = "1h,1h,2h,1ms"

// startKeeper runs a keeper whose workers behave as the plan says, the last
// line for all that follow.
func startKeeper(t *testing.T, times string, plan ...string) *kept {
	t.Helper()
	return startKeeperLog(t, nil, times, plan...)
}

// startKeeperLog is startKeeper with a log that is not in the test's
// directory.
func startKeeperLog(t *testing.T, log *os.File, times string, plan ...string) *kept {
	t.Helper()
	k := &kept{t: t, dir: t.TempDir()}
	for _, dir := range []string{"connections/7", "run"} {
		if err := os.MkdirAll(filepath.Join(k.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	k.waiting(1)
	k.write("plan", strings.Join(plan, "\n"))
	fifo := filepath.Join(k.dir, "device")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if k.device, err = os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	if log == nil {
		if log, err = os.Create(filepath.Join(k.dir, "log")); err != nil {
			t.Fatal(err)
		}
		defer log.Close()
	}
	s := Start{Args: []string{"epochfs", "worker", k.dir}, Env: append(os.Environ(), timesEnv+"="+times),
		Sockets: filepath.Join(k.dir, "run"), Log: log}
	if k.cmd, err = s.Command(); err != nil {
		t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.cleanUp)
	return k
}

// cleanUp ends the keeper, where the test has not, and looks for what it
// has left.
func (k *kept) cleanUp() {
	k.device.Close()
	if k.cmd.ProcessState == nil {
		_ = k.cmd.Process.Kill()
		_ = k.cmd.Wait()
	}
	// While one lives, the directory may not be removed under it.
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left := k.processes()
		if len(left) == 0 {
			break
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if k.t.Failed() {
		for _, name := range []string{"diary", "log"} {
			text, _ := os.ReadFile(filepath.Join(k.dir, name))
			k.t.Logf("%s:\n%s", name, text)
		}
	}
}

func (k *kept) write(name, text string) {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// waiting says how many requests wait for an answer.
func (k *kept) waiting(n int) { k.write("connections/7/waiting", strconv.Itoa(n)+"\n") }

// entry is a line of the diary.
type entry struct {
	pid  int
	at   time.Time
	what string
}

func (k *kept) diary() (all []entry) {
	text, _ := os.ReadFile(filepath.Join(k.dir, "diary"))
	for line := range strings.Lines(string(text)) {
		pid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		nanos, what, _ := strings.Cut(rest, " ")
		var e entry
		e.pid, _ = strconv.Atoi(pid)
		n, _ := strconv.ParseInt(nanos, 10, 64)
		e.at, e.what = time.Unix(0, n), what
		all = append(all, e)
	}
	return all
}

// noted are the diary's entries that begin so.
func (k *kept) noted(what string) []entry {
	return slices.DeleteFunc(k.diary(), func(e entry) bool { return !strings.HasPrefix(e.what, what) })
}

// until waits for the nth entry that begins so, and returns it.
func (k *kept) until(n int, what string) entry {
	k.t.Helper()
	var e entry
	k.poll(fmt.Sprintf("%d times %q", n, what), func() bool {
		all := k.noted(what)
		if len(all) >= n {
			e = all[n-1]
		}
		return len(all) >= n
	})
	return e
}

func (k *kept) poll(what string, so func() bool) {
	k.t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			k.t.Fatalf("not in time: %s", what)
		}
	}
}

// unmount ends the connection.
func (k *kept) unmount() { k.device.Close() }

// end waits for the keeper's end; then nothing of it is left.
func (k *kept) end() (code int) {
	k.t.Helper()
	done := make(chan struct{})
	go func() { _ = k.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		k.t.Fatal("the keeper does not end")
	}
	k.poll("all processes end", func() bool { return len(k.processes()) == 0 })
	if left, err := os.ReadDir(filepath.Join(k.dir, "run")); err != nil || len(left) > 0 {
		k.t.Errorf("sockets left: %v, %v", left, err)
	}
	return k.cmd.ProcessState.ExitCode()
}

// processes are those that still run, of this keeper's.
func (k *kept) processes() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		text, err := os.ReadFile(file)
		if pid, _ := strconv.Atoi(strings.Split(file, "/")[2]); err == nil && strings.HasSuffix(string(text), "\x00"+k.dir+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ask asks the keeper.
func (k *kept) ask(question message) (message, error) {
	k.t.Helper()
	socket := filepath.Join(k.dir, "run", strconv.Itoa(k.cmd.Process.Pid)+keeperSuffix)
	return ask(socket, question, patience)
}

// restart has another binary take over, whose workers behave as a plan
// says.
func (k *kept) restart(plan ...string) (message, error) {
	k.t.Helper()
	text, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		k.t.Fatal(err)
	}
	name := filepath.Join(k.dir, "newer")
	_ = os.Remove(name)
	if err := os.WriteFile(name, text, 0o700); err != nil {
		k.t.Fatal(err)
	}
	k.write("newer.plan", strings.Join(plan, "\n"))
	exe, err := os.Open(name)
	if err != nil {
		k.t.Fatal(err)
	}
	defer exe.Close()
	question := newMessage(varRestart, "1")
	question.fds = []int{int(exe.Fd())}
	return k.ask(question)
}

// serving is the process that the keeper says serves.
func (k *kept) serving() int {
	k.t.Helper()
	answer, err := k.ask(newMessage(varAsk, "1"))
	if err != nil {
		k.t.Fatal(err)
	}
	pid, _ := strconv.Atoi(answer.vars[varWorker])
	return pid
}

// descriptors counts those of the keeper.
func (k *kept) descriptors() int {
	k.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", k.cmd.Process.Pid))
	if err != nil {
		k.t.Fatal(err)
	}
	return len(all)
}
