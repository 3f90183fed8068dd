// Package cocoon runs the cocoon command line: it exports snapshots from
// cocoon as tars, and imports snapshots and images. It does not interpret
// the tars.
package cocoon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// BinaryEnv is the environment variable that sets the cocoon binary: a path,
// or a name to look up in PATH.
const BinaryEnv = "EPOCH_COCOON_BINARY"

// grace is how long cocoon may take to clean up after it was asked to stop,
// before it is killed.
const grace = 10 * time.Second

// ErrNoSnapshot is wrapped by the error for a snapshot that cocoon does not
// have.
var ErrNoSnapshot = errors.New("no such snapshot in cocoon")

// ErrNameTaken is wrapped by the error for a snapshot whose name is in use.
var ErrNameTaken = errors.New("name is taken in cocoon")

// ImportOptions describes the snapshot that an import creates.
type ImportOptions struct {
	Name        string // the snapshot's name in cocoon
	Description string // empty: use the tar's
}

// Exec runs the cocoon binary as a child process.
type Exec struct {
	Binary string    // a result of ResolveBinary
	Stderr io.Writer // gets cocoon's messages; may be nil
}

// Snapshot is one entry of cocoon's list.
type Snapshot struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// ResolveBinary returns the path of the cocoon binary: envValue, a path or a
// name to look up in PATH, or if envValue is blank, "cocoon" in PATH.
func ResolveBinary(envValue string) (string, error) {
	name := strings.TrimSpace(envValue)
	if name == "" {
		name = "cocoon"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &Error{Command: "cocoon", Err: fmt.Errorf("no binary %q (set %s or PATH): %w", name, BinaryEnv, unwrapExec(err))}
	}
	return path, nil
}

// unwrapExec removes the outer part of an error from package exec, which
// would repeat words of the message.
func unwrapExec(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// Export starts `cocoon snapshot export` and returns the tar that it writes.
// The caller reads to io.EOF, or closes the reader to end the export early,
// and then calls wait, which returns nil if the tar is complete. When ctx
// ends, Export asks cocoon to stop, and kills it if it does not.
func (e *Exec) Export(ctx context.Context, name string) (tar io.ReadCloser, wait func() error, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	c := e.command(ctx, "snapshot", "export", name, "-o", "-")
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, nil, c.failed(err)
	}
	if err := c.start(); err != nil {
		return nil, nil, err
	}
	told := &noted{ReadCloser: out}
	return told, func() error {
		err := c.wait()
		if told.some.Load() {
			return err // cocoon has the snapshot
		}
		return e.exported(ctx, name, err)
	}, nil
}

// noted records whether anything was read.
type noted struct {
	io.ReadCloser
	some atomic.Bool
}

func (n *noted) Read(p []byte) (int, error) {
	k, err := n.ReadCloser.Read(p)
	if k > 0 {
		n.some.Store(true)
	}
	return k, err
}

// checkName refuses a name that cocoon would take for a flag.
func checkName(name string) error {
	if name == "" || strings.HasPrefix(name, "-") {
		return fmt.Errorf("%q is not a name for cocoon", name)
	}
	return nil
}

// exported distinguishes a missing snapshot from a failed export.
func (e *Exec) exported(ctx context.Context, name string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	all, listErr := (&Exec{Binary: e.Binary}).List(ctx)
	if listErr != nil {
		return err
	}
	for _, s := range all {
		if s.Name == name || strings.HasPrefix(s.ID, name) {
			return err
		}
	}
	return fmt.Errorf("%w: %s", ErrNoSnapshot, name)
}

// Import starts `cocoon snapshot import`, which reads a tar from the
// returned writer. The caller writes the tar, closes the writer and calls
// wait, which returns nil if the snapshot was created. To abort, the caller
// writes a block that cannot be a tar header and then closes the writer:
// cocoon removes the incomplete snapshot, whereas it would take an end of
// input at an entry's boundary for a complete one. For this reason the end
// of ctx kills cocoon only after a grace time, in which the caller can still
// abort.
func (e *Exec) Import(ctx context.Context, opts ImportOptions) (tar io.WriteCloser, wait func() error, err error) {
	args := []string{"snapshot", "import", "--name", opts.Name}
	if opts.Description != "" {
		args = append(args, "--description", opts.Description)
	}
	c := e.command(ctx, args...)
	// With ErrProcessDone, which means that no signal was sent, the
	// result of Wait is how cocoon itself ends within the grace time.
	c.cmd.Cancel = func() error { return os.ErrProcessDone }
	return c.startWriter()
}

// ImageImport starts `cocoon image import`, which reads a disk image from
// the returned writer. Cocoon cannot detect a truncated image, so to abort,
// the caller cancels ctx, which kills cocoon at once, and calls wait without
// closing the writer.
func (e *Exec) ImageImport(ctx context.Context, name string) (image io.WriteCloser, wait func() error, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	c := e.command(ctx, "image", "import", name)
	c.cmd.Cancel = func() error { return c.cmd.Process.Kill() }
	return c.startWriter()
}

// List returns the snapshots in cocoon.
func (e *Exec) List(ctx context.Context) ([]Snapshot, error) {
	c := e.command(ctx, "snapshot", "list", "--format", "json")
	var out strings.Builder
	c.cmd.Stdout = &out
	if err := c.start(); err != nil {
		return nil, err
	}
	if err := c.wait(); err != nil {
		return nil, err
	}
	text := strings.TrimSpace(out.String())
	if !strings.HasPrefix(text, "[") {
		return nil, nil // an empty list is a message in words, in either format
	}
	var all []Snapshot
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, c.failed(fmt.Errorf("list is not JSON: %w", err))
	}
	return all, nil
}

// CheckFree returns an error that wraps ErrNameTaken if cocoon has a
// snapshot of the given name. Cocoon would report the conflict itself, but
// only after reading the whole tar.
func (e *Exec) CheckFree(ctx context.Context, name string) error {
	all, err := e.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Name == name {
			return fmt.Errorf("%w: %s (snapshot %s)", ErrNameTaken, name, s.ID)
		}
	}
	return nil
}
