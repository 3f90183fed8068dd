package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stat is a line as the kernel writes it.
func stat(name string, state byte, flags, pending uint64, code int) string {
	return fmt.Sprintf("7 (%s) %c 1 7 7 0 -1 %d %s %d %s %d\n", name, state, flags,
		strings.TrimSpace(strings.Repeat("0 ", 21)), pending, strings.TrimSpace(strings.Repeat("0 ", 20)), code)
}

func TestSpentThread(t *testing.T) {
	for _, c := range []struct {
		line      string
		read, end bool
	}{
		{stat("epochfs", 'S', 0x400040, 0, 0), true, false},
		{stat("epochfs", 'D', 0x400040, 0, 0), true, false},
		{stat("epochfs", 'D', 0x400040, 0x4000, 0), true, false},
		{stat("epochfs", 'D', 0x400040, 0x100, 9), true, true},
		{stat("epochfs", 'R', 0x400040, 0x100, 9), true, false}, // perhaps in user space
		{stat("epochfs", 'S', 0x400040, 0x100, 9), true, false}, // it will wake up
		{stat("epochfs", 'R', 0x400044, 0, 9), true, true},
		{stat("epochfs", 'Z', 0x40000c, 0, 9), true, true},
		{stat(") D 1 (x) Z", 'S', 0, 0, 0), true, false},
		{"7 (epochfs) S 1 2 3", false, false},
		{"", false, false},
		{stat("epochfs", 'D', 0, 0x100, 9)[:40], false, false},
	} {
		got, ok := parseThread([]byte(c.line))
		if ok != c.read || ok && got.spent() != c.end {
			t.Errorf("%q: %+v, %v", c.line, got, ok)
		}
		if ok && c.end && got.status.Signal() != syscall.SIGKILL {
			t.Errorf("%q: %v", c.line, got.status)
		}
	}
}

// A process that runs is not spent. One that has ended and was not waited for
// is, and how it ended is known.
func TestSpentProcess(t *testing.T) {
	if _, ok := spent(os.Getpid()); ok {
		t.Error("this process is spent")
	}
	for script, want := range map[string]syscall.WaitStatus{"kill -9 $$": 9, "exit 3": 3 << 8} {
		cmd := exec.Command("sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			t.Fatal(err)
		}
		if status, ok := spent(pid); !ok || status != want {
			t.Errorf("%s: %v, %v", script, status, ok)
		}
		_ = cmd.Wait()
		if _, ok := spent(pid); ok {
			t.Errorf("%s: spent, although it is gone", script)
		}
	}
}

// The keeper looks at its workers every second, and has no collector to speak of.
func TestLookingLeavesLittle(t *testing.T) {
	looks := testing.AllocsPerRun(100, func() {
		if _, ok := spent(os.Getpid()); ok {
			t.Fatal("this process is spent")
		}
	})
	if looks > 5 { // names of files
		t.Errorf("a look allocates %v times", looks)
	}
}

// When the rest of a killed worker is gone, the one that serves is told to ask
// the kernel again, once for however many there were.
func TestAskedAgain(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	l := &Link{again: make(chan struct{}, 1), lost: make(chan struct{})}
	go l.listen(pair[1], l.lost)
	k := &keeper{}
	left := event{from: &worker{}, left: true}
	k.handle(left) // none serves: nobody to be told
	k.serving = &worker{link: pair[0]}
	for range 3 {
		if _, ended := k.handle(left); ended {
			t.Fatal("the keeper ends")
		}
	}
	unix.Close(pair[0])
	<-l.Lost() // all that was sent has come
	select {
	case <-l.Again():
	default:
		t.Error("it was not told")
	}
	select {
	case <-l.Again():
		t.Error("it was told twice")
	default:
	}
}
