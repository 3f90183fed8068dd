package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// parentEnv makes the test binary a parent that starts a child, tells its
// process ID and waits.
const parentEnv = "EPOCHFS_TEST_SANDBOX_PARENT"

func TestMain(m *testing.M) {
	switch {
	case Is():
		os.Exit(Main(behave))
	case os.Getenv(parentEnv) != "":
		c, err := Start(context.Background(), Options{})
		if err != nil {
			panic(err)
		}
		fmt.Println(c.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

func begin(t *testing.T, opts Options) *Child {
	t.Helper()
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// do has the child do something, and returns its answer.
func do(c *Child, what string) (string, error) {
	if err := c.Write(1, []byte(what)); err != nil {
		return "", err
	}
	_, payload, err := c.Read()
	return string(payload), err
}

// TestConfined tries what a child that was taken over would try.
func TestConfined(t *testing.T) {
	t.Parallel()
	for _, what := range []string{
		"open /etc/passwd", "create /tmp/epochfs-sandbox-test", "socket", "dup", "fork", "exec", "kill " + strconv.Itoa(os.Getpid()), "kill-thread " + strconv.Itoa(os.Getpid()), "share", "grow", "poison",
		"code", "executable",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := begin(t, Options{})
			if c.Level != Seccomp {
				t.Fatalf("confined by %s", c.Level)
			}
			answer, err := do(c, what)
			if !errors.Is(err, ErrMisbehaved) || !strings.Contains(err.Error(), "may not have") {
				t.Fatalf("%q, %v: the kernel did not end it", answer, err)
			}
		})
	}
}

// TestLimitsAlone tries the same where there is no filter: nothing can be
// opened.
func TestLimitsAlone(t *testing.T) {
	t.Parallel()
	c := begin(t, Options{NoFilter: true})
	if c.Level != Limits {
		t.Fatalf("confined by %s", c.Level)
	}
	for _, what := range []string{"open /etc/passwd", "create /tmp/epochfs-sandbox-test", "socket", "dup"} {
		if answer, err := do(c, what); err != nil || answer != fmt.Sprint(int(unix.EMFILE)) {
			t.Errorf("%s: %q, %v", what, answer, err)
		}
	}
}

// TestInheritsNothing leaves a descriptor open for whatever is started, as a
// shell may.
func TestInheritsNothing(t *testing.T) {
	t.Setenv("EPOCH_REGISTRY_TOKEN", "secret")
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	c := begin(t, Options{})
	if answer, err := do(c, fmt.Sprintf("read %d", fds[0])); err != nil || answer != fmt.Sprint(int(unix.EBADF)) {
		t.Errorf("%q, %v", answer, err)
	}
	if answer, err := do(c, "env"); err != nil || answer != "3" {
		t.Errorf("%s variables, %v", answer, err)
	}
}

func TestWorks(t *testing.T) {
	t.Parallel()
	for _, opts := range []Options{{}, {NoFilter: true}} {
		c := begin(t, opts)
		for _, what := range []string{"echo", "threads", "threads", "flood", "echo"} {
			if answer, err := do(c, what); err != nil || answer != "0" {
				t.Fatalf("%s: %q, %v (%s)", what, answer, err, c.Said())
			}
		}
		if n := len(c.Said()); n != maxSaid {
			t.Errorf("%d bytes of stderr were kept", n)
		}
	}
}

// TestMisbehaves has the child fail in every way that it can.
func TestMisbehaves(t *testing.T) {
	t.Parallel()
	for what, why := range map[string]string{
		"recurse": "recursed", "panic": "crashed", "fault": "crashed", "exit": "too early",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			opts := Options{}
			if why == "sign of life" {
				opts.Patience = 300 * time.Millisecond
			}
			c := begin(t, opts)
			_, err := do(c, what)
			if !errors.Is(err, ErrMisbehaved) || !strings.Contains(err.Error(), why) {
				t.Fatal(err, c.Said())
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %q", err)
			}
			<-c.exited
			if _, err := do(c, "echo"); !errors.Is(err, ErrMisbehaved) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// TestCancel ends the context while a child works.
func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Write(1, []byte("spin")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, _, err := c.Read(); !errors.Is(err, ErrMisbehaved) {
		t.Fatal(err)
	}
}

// TestSignals sends what a terminal sends: the parent decides.
func TestSignals(t *testing.T) {
	t.Parallel()
	c := begin(t, Options{})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if err := c.process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	if answer, err := do(c, "echo"); err != nil || answer != "0" {
		t.Fatalf("%q, %v", answer, err)
	}
}

// TestParentKilled leaves a child without a parent.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), parentEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for end := time.Now().Add(time.Minute); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d lives on", pid)
		}
	}
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

func TestFrames(t *testing.T) {
	t.Parallel()
	var pipe bytes.Buffer
	c := &Conn{r: &pipe, w: &pipe}
	for _, n := range []int{0, 1, 4096, MaxFrame, 5} {
		payload := bytes.Repeat([]byte{byte(n)}, n)
		for _, p := range [][]byte{payload, append(c.Buffer(), payload...)} {
			if err := c.Write(7, p); err != nil {
				t.Fatal(err)
			}
			kind, got, err := c.Read()
			if err != nil || kind != 7 || !bytes.Equal(got, payload) {
				t.Fatalf("kind %d, %d bytes, %v", kind, len(got), err)
			}
		}
	}
	if err := c.Write(7, make([]byte, MaxFrame+1)); err == nil {
		t.Error("a frame too large was sent")
	}
	pipe.Write([]byte{7, 9, 0, 0, 0, 1})
	if _, _, err := c.Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut frame: %v", err)
	}
}
