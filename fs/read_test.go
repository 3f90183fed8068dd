package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// failing is a content whose reads fail, all or those past a limit.
type failing struct {
	bytesContent
	err   error
	reads atomic.Int64
}

func (c *failing) ReadAt(context.Context, []byte, int64) (int, error) {
	c.reads.Add(1)
	return 0, c.err
}

func TestFaultSurvivesSignals(t *testing.T) {
	data := randomBytes(8<<20, 1)
	c := newBlocked(data)
	m := mounted(t, []File{fileOf("f", int64(len(data)), c)}, Options{})
	reader := start(t, helperCmd("faults", filepath.Join(m.Dir(), "f"), "signals"))
	eventually(t, "a read that was interrupted and goes on", func() bool {
		return c.left.Load() >= 1 && c.entered.Load() > c.left.Load()
	})
	close(c.open)
	line, _ := reader.out.ReadString('\n')
	if want := fmt.Sprintln(data[len(data)/2]); line != want {
		t.Errorf("the reader said %q, want %q", line, want)
	}
}

// An interrupt must end whoever waits, however it reads, and must not
// leave its read behind where the kernel tells of it.
func TestInterrupt(t *testing.T) {
	for _, tc := range []struct {
		name   string
		reader func(path string) *exec.Cmd
		ends   bool // its read ends with it; readahead does not
	}{
		{"read", func(p string) *exec.Cmd { return exec.Command("cat", p) }, false},
		{"direct", func(p string) *exec.Cmd {
			return exec.Command("dd", "if="+p, "of=/dev/null", "bs=1M", "iflag=direct")
		}, true},
		{"fault", func(p string) *exec.Cmd { return helperCmd("faults", p, "quiet") }, true},
	} {
		for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
			t.Run(fmt.Sprint(tc.name, " ", sig), func(t *testing.T) {
				c := newBlocked(randomBytes(4<<20, 1))
				m := mounted(t, []File{fileOf("f", 4<<20, c)}, Options{})
				cmd := tc.reader(filepath.Join(m.Dir(), "f"))
				check(t, cmd.Start())
				eventually(t, "a read", func() bool { return c.entered.Load() > 0 })
				check(t, cmd.Process.Signal(sig))
				// One that the interrupt does not end waits until its bytes come.
				late := time.AfterFunc(time.Minute, func() { close(c.open) })
				_ = cmd.Wait()
				if !late.Stop() {
					t.Fatal("the reader did not end before its bytes came")
				}
				if tc.ends {
					eventually(t, "the end of the read", func() bool { return c.left.Load() == c.entered.Load() })
				}
				close(c.open)
			})
		}
	}
}

func TestDirectReadGetsEINTR(t *testing.T) {
	c := newBlocked(randomBytes(1<<20, 1))
	m := mounted(t, []File{fileOf("f", 1<<20, c)}, Options{})
	if got := help(t, "signalled", filepath.Join(m.Dir(), "f")); got != "EINTR\n" {
		t.Errorf("got %q", got)
	}
	if c.left.Load() != c.entered.Load() {
		t.Error("the read was left behind")
	}
}

// A connection that is aborted lets go of all reads, though their readers
// live.
func TestAbortEndsReads(t *testing.T) {
	needRoot(t)
	c := newBlocked(randomBytes(4<<20, 1))
	m := mounted(t, []File{fileOf("f", 4<<20, c)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	fault := start(t, helperCmd("faults", path, "signals")) // it goes on after a signal
	eventually(t, "a read that was interrupted and goes on", func() bool {
		return c.left.Load() >= 1 && c.entered.Load() > c.left.Load()
	})
	plain := exec.Command("cat", path)
	check(t, plain.Start())
	eventually(t, "another read", func() bool { return c.entered.Load() >= 3 })
	if err := unix.Unmount(m.Dir(), unix.MNT_FORCE); err != nil && err != unix.EBUSY {
		t.Fatal(err)
	}
	m.Wait()
	if c.left.Load() != c.entered.Load() {
		t.Error("a read was left behind")
	}
	if line, _ := fault.out.ReadString('\n'); line != "error: EFAULT\n" {
		t.Errorf("the fault: %q", line)
	}
	if plain.Wait() == nil {
		t.Error("cat succeeded")
	}
}

func TestFailedReads(t *testing.T) {
	log := &testLog{t: t}
	contents := map[string]*failing{
		"EIO":       {err: errors.New("the blob is gone")},
		"ETIMEDOUT": {err: fmt.Errorf("fetch: %w", context.DeadlineExceeded)},
	}
	// An error of a fetch that somebody else cancelled is no interrupt.
	contents["EIO2"] = &failing{err: context.Canceled}
	contents["EIO3"] = &failing{err: nil} // no bytes, no error
	contents["EIO4"] = &failing{err: unix.EINTR}
	var files []File
	for name, c := range contents {
		files = append(files, fileOf(name, 4096, c))
	}
	m := mounted(t, files, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
	for name, c := range contents {
		path := filepath.Join(m.Dir(), name)
		out, _ := helperCmd("sha", path).Output()
		want := "error: " + strings.TrimRight(name, "234") + "\n"
		if string(out) != want {
			t.Errorf("%s: got %q, want %q", name, out, want)
		}
		lines := log.count("file=" + name + " ")
		if reads := c.reads.Load(); reads == 0 || int(reads) != lines {
			t.Errorf("%s: %d failed reads, %d lines in the log", name, reads, lines)
		}
	}
}

func TestKilled(t *testing.T) {
	own, err := os.ReadFile("/proc/self/status")
	check(t, err)
	if killed(own) {
		t.Error("this process is not about to die")
	}
	for status, want := range map[string]bool{
		"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n": false,
		"Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n": true,
		"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n": true,
		"Name:\tx\nSigPnd:\t0000000000000200\nShdPnd:\t0000000000002000\n": false,
		"Name:\tx\n": true,
		"":           true,
	} {
		if killed([]byte(status)) != want {
			t.Errorf("%q: want %v", status, want)
		}
	}
}

// TestSteadyReadsDoNotAllocate answers reads of data and of a hole, as the
// server has them answered.
func TestSteadyReadsDoNotAllocate(t *testing.T) {
	const size = 8 << 20
	m, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 4 << 20}}, size)
	check(t, err)
	f := File{Name: "f", Map: m, Content: diskFile(t, randomBytes(size, 1))}
	tree, err := newTree([]File{f}, Options{})
	check(t, err)
	buf := make([]byte, 128<<10)
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: firstIno}}
	n := testing.AllocsPerRun(100, func() {
		res, status := tree.Read(nil, in, buf)
		if !status.Ok() || res.Size() != len(buf) {
			t.Fatalf("read at %d: %v", in.Offset, status)
		}
		res.Done()
		in.Offset = (in.Offset + 1<<20) % size
	})
	if n > 0 {
		t.Errorf("%v allocations a read", n)
	}
}
