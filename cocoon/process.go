package cocoon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"unicode"
)

// tailSize is the number of bytes of cocoon's stderr kept for an error's
// text.
const tailSize = 4 << 10

// Error is the error of a cocoon command that failed or could not be
// started.
type Error struct {
	Command string // the command, without the path
	Words   string // the last line cocoon wrote to stderr; may be empty
	Err     error  // how the process ended
}

// Error returns the message as one line, without control characters.
func (e *Error) Error() string {
	if e.Words == "" {
		return fmt.Sprintf("%s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, e.Words)
}

// Unwrap returns the error with which the process ended.
func (e *Error) Unwrap() error { return e.Err }

// child is one run of the cocoon binary.
type child struct {
	cmd   *exec.Cmd
	label string
	tail  tail
}

func (e *Exec) command(ctx context.Context, args ...string) *child {
	c := &child{
		cmd:   exec.CommandContext(ctx, e.Binary, args...),
		label: "cocoon " + strings.Join(args[:min(len(args), 2)], " "),
	}
	c.tail.to = e.Stderr
	c.cmd.Stderr = &c.tail
	c.cmd.WaitDelay = grace
	// cocoon gets a process group of its own, so that Ctrl-C does not
	// reach it directly: only the caller can end an import properly.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

func (c *child) failed(err error) error {
	return &Error{Command: c.label, Words: c.tail.lastLine(), Err: err}
}

func (c *child) start() error {
	if err := c.cmd.Start(); err != nil {
		return c.failed(err)
	}
	return nil
}

// startWriter starts cocoon with a pipe as standard input. The returned
// writer is also a Listener.
func (c *child) startWriter() (io.WriteCloser, func() error, error) {
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, nil, c.failed(err)
	}
	c.cmd.Stdout = &c.tail
	if err := c.start(); err != nil {
		return nil, nil, err
	}
	l := &listener{WriteCloser: in, gone: make(chan struct{})}
	go func() {
		defer close(l.gone)
		l.err = c.wait()
	}()
	return l, func() error {
		<-l.gone
		return l.err
	}, nil
}

// Listener is implemented by the writers of imports. A caller with nothing
// to write can use it to learn that cocoon has ended.
type Listener interface {
	Gone() <-chan struct{} // closed when cocoon has ended
}

type listener struct {
	io.WriteCloser
	gone chan struct{}
	err  error // how cocoon ended; read after gone
}

func (l *listener) Gone() <-chan struct{} { return l.gone }

// wait blocks until the process has ended and been reaped.
func (c *child) wait() error {
	err := c.cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) && c.cmd.ProcessState.Success() {
		return nil // cocoon has succeeded; one of its children holds its stderr
	}
	if err != nil {
		return c.failed(err)
	}
	return nil
}

// tail forwards writes and keeps their last bytes.
type tail struct {
	to io.Writer

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.mu.Unlock()
	if t.to != nil {
		// A closed reader of the messages must not end an import.
		_, _ = t.to.Write(p)
	}
	return len(p), nil
}

// lastLine returns the last line that is not blank, without unprintable
// characters.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := bytes.TrimSpace(t.buf)
	if i := bytes.LastIndexAny(line, "\r\n"); i >= 0 {
		line = line[i+1:]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.TrimSpace(string(line)))
}
