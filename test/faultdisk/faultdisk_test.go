package faultdisk

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(Env) != "" {
		if err := Enter(); err != nil {
			os.Exit(1)
		}
		watchedProcess()
		return
	}
	os.Exit(m.Run())
}

// watchedProcess writes, for each line it is given, a file of that name,
// and says how that went.
func watchedProcess() {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(writeAndRead(in.Text()))
	}
}

func writeAndRead(name string) string {
	err := os.WriteFile(name, []byte("0123456789"), 0o600)
	if err != nil {
		var errno syscall.Errno
		errors.As(err, &errno)
		return fmt.Sprint("write ", errno)
	}
	b, err := os.ReadFile(name)
	return fmt.Sprint(string(b), " ", err)
}

// watched starts a process and returns how to have it write a file.
func startWatched(t *testing.T) (d *Disk, write func(name string) string, wait func() error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d, err = Start(cmd)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
		d.Wait()
	})
	answers := bufio.NewReader(out)
	write = func(name string) string {
		if _, err := io.WriteString(in, name+"\n"); err != nil {
			return err.Error()
		}
		line, err := answers.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return strings.TrimSuffix(line, "\n")
	}
	return d, write, cmd.Wait
}

// TestFaults has the same file written with a fault at each call in turn.
func TestFaults(t *testing.T) {
	dir, other := t.TempDir(), filepath.Join(t.TempDir(), "x")
	d, write, _ := startWatched(t)
	seen := map[string]bool{}
	failed := 0
	for n := 1; ; n++ {
		d.Watch(dir, func(c Call) Action {
			seen[c.Name] = true
			if c.N == n {
				return Action{Err: unix.ENOSPC}
			}
			return Action{}
		})
		if got := write(other); got != "0123456789 <nil>" {
			t.Fatalf("beside the directory: %s", got)
		}
		if d.Calls() != 0 {
			t.Fatalf("%d calls beside the directory were seen", d.Calls())
		}
		got := write(filepath.Join(dir, "x"))
		if d.Calls() < n {
			if got != "0123456789 <nil>" {
				t.Fatalf("without a fault: %s", got)
			}
			break
		}
		if !strings.Contains(got, unix.ENOSPC.Error()) && got != "0123456789 <nil>" { // a size need not be known
			t.Errorf("call %d failed: %s", n, got)
		}
		failed++
	}
	for _, name := range []string{"openat", "write", "read"} {
		if !seen[name] {
			t.Errorf("%s was not seen", name)
		}
	}
	if failed < 4 {
		t.Errorf("%d calls failed", failed)
	}
}

func TestShortWrite(t *testing.T) {
	dir := t.TempDir()
	d, write, _ := startWatched(t)
	writes := 0
	d.Watch(dir, func(c Call) Action {
		if c.Name == "write" {
			writes++
			return Action{Short: writes == 1, Err: map[bool]unix.Errno{true: unix.ENOSPC}[writes == 2]}
		}
		return Action{}
	})
	if got := write(filepath.Join(dir, "x")); !strings.Contains(got, unix.ENOSPC.Error()) {
		t.Errorf("answer %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "x")); string(b) != "01234" || err != nil {
		t.Errorf("%q was written, %v", b, err)
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	d, write, wait := startWatched(t)
	d.Watch(dir, func(c Call) Action { return Action{Kill: c.Name == "write"} })
	_ = write(filepath.Join(dir, "x"))
	var exit *exec.ExitError
	if err := wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v", err)
	}
	d.Wait()
	if b, err := os.ReadFile(filepath.Join(dir, "x")); len(b) != 0 || err != nil {
		t.Errorf("%q was written, %v", b, err)
	}
}
