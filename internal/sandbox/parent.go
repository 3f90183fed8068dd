package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options configure a child. The zero value is right except for tests.
type Options struct {
	Patience time.Duration // until the next frame; 0 for Patience
	NoFilter bool          // as on a kernel without seccomp
}

// Child is a running child. It is not safe for concurrent use.
type Child struct {
	Level Level // its confinement

	conn     *Conn
	to, from *os.File
	process  *os.Process
	patience time.Duration
	said     *head
	exited   chan struct{} // closed once state is final
	state    error         // result of Wait
	undo     func() bool   // detaches the child from the context
}

// Start starts a child and waits until it is confined. When ctx ends, the
// child is killed. The caller must call Close.
func Start(ctx context.Context, opts Options) (*Child, error) {
	c, err := start(opts)
	if err != nil {
		return nil, fmt.Errorf("start a process that reads the guest's bytes: %w", err)
	}
	c.undo = context.AfterFunc(ctx, c.Kill)
	kind, payload, err := c.Read()
	if err == nil && (kind != helloFrame || len(payload) != 1 || Level(payload[0]) > Seccomp) {
		err = misbehaved("it started with invalid data")
	}
	if err != nil {
		c.Close()
		return nil, errors.Join(ctx.Err(), err)
	}
	c.Level = Level(payload[0])
	return c, nil
}

func start(opts Options) (*Child, error) {
	childIn, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	from, childOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	defer childOut.Close()
	c := &Child{to: to, from: from, patience: opts.Patience, said: &head{}, exited: make(chan struct{})}
	if c.patience == 0 {
		c.patience = Patience
	}
	c.conn = &Conn{r: from, w: to}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args[:1]
	cmd.Dir = "/"
	cmd.Env = []string{childEnv + "=" + confined, "GOTRACEBACK=single", "GOMAXPROCS=1"}
	if opts.NoFilter {
		cmd.Env[0] = childEnv + "=" + limited
	}
	cmd.ExtraFiles = []*os.File{childIn, childOut}
	cmd.Stderr = c.said
	// In a process group of its own: the terminal's signals are for the
	// parent.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.run(cmd); err != nil {
		return nil, errors.Join(err, to.Close(), from.Close())
	}
	return c, nil
}

// run starts the process and waits for its end in the background, on a
// locked thread: the kernel kills the child when the thread that started it
// ends.
func (c *Child) run(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.process = cmd.Process
		}
		started <- err
		if err == nil {
			c.state = cmd.Wait()
			close(c.exited)
		}
	}()
	return <-started
}

// Read returns the next frame, or the reason why there is none. The payload
// is valid until the next Read.
func (c *Child) Read() (kind byte, payload []byte, err error) {
	if err := c.from.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, nil, err
	}
	kind, payload, err = c.conn.Read()
	if err != nil {
		return 0, nil, c.failed(err)
	}
	return kind, payload, nil
}

// Buffer is Conn.Buffer.
func (c *Child) Buffer() []byte { return c.conn.Buffer() }

// Write sends a frame.
func (c *Child) Write(kind byte, payload []byte) error {
	if err := c.to.SetWriteDeadline(time.Now().Add(c.patience)); err != nil {
		return err
	}
	if err := c.conn.Write(kind, payload); err != nil {
		return c.failed(err)
	}
	return nil
}

// Misbehaved ends the child and returns an error with the reason.
func (c *Child) Misbehaved(format string, args ...any) error {
	c.Kill()
	return misbehaved(format, args...)
}

// failed ends the child and returns why a frame could not be read or
// written.
func (c *Child) failed(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return c.Misbehaved("no sign of life for %s", c.patience)
	}
	gone := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)
	if gone {
		// It may have closed its pipes and still run.
		select {
		case <-c.exited:
		case <-time.After(c.patience):
		}
	}
	c.Kill()
	<-c.exited
	if !gone {
		return misbehaved("%v", err)
	}
	return misbehaved("%s", c.death())
}

// death describes how the child ended.
func (c *Child) death() string {
	said := c.said.String()
	var exit *exec.ExitError
	var status syscall.WaitStatus
	if errors.As(c.state, &exit) {
		status, _ = exit.Sys().(syscall.WaitStatus)
	}
	switch {
	case strings.Contains(said, "out of memory"), strings.Contains(said, "cannot allocate memory"):
		return fmt.Sprintf("it wanted more than %d MiB of memory", Memory>>20)
	case strings.Contains(said, "stack exceeds"):
		return "it recursed without end"
	case status.Signaled() && status.Signal() == syscall.SIGSYS:
		return "it asked the kernel for what it may not have"
	case status.Signaled():
		return fmt.Sprintf("it was ended by a signal (%v)", status.Signal())
	case c.state == nil:
		return "it ended too early"
	}
	return "it crashed"
}

// Said returns the first KiB of the child's stderr: the trace of a crash. It
// is text from elsewhere.
func (c *Child) Said() string { return c.said.String() }

// PID returns the child's process ID.
func (c *Child) PID() int { return c.process.Pid }

// Kill ends the child. Close must still be called.
func (c *Child) Kill() { _ = c.process.Kill() } // fails if it has ended

// Close ends the child and waits until it is gone.
func (c *Child) Close() {
	if c.undo != nil {
		c.undo()
	}
	c.Kill()
	<-c.exited
	_ = c.to.Close() // the child is gone
	_ = c.from.Close()
}

// head keeps the first bytes written to it.
type head struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxSaid = 8 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Write(p[:min(len(p), maxSaid-h.buf.Len())])
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.buf.String()
}
