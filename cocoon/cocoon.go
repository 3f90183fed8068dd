// Package cocoon runs the cocoon command line: it takes snapshots out of
// cocoon as tars, and puts snapshots and images into it. What a tar holds
// is the caller's business.
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

// BinaryEnv is the environment variable that names the cocoon binary; a
// path, or a name that is looked for in PATH.
const BinaryEnv = "EPOCH_COCOON_BINARY"

// grace is how long a cocoon that was asked to stop may take to clean up
// before it is killed.
const grace = 10 * time.Second

// ErrNoSnapshot is in the chain of an error that says: cocoon knows no
// snapshot of this name.
var ErrNoSnapshot = errors.New("no such snapshot in cocoon")

// ErrNameTaken is in the chain of an error that says: a snapshot of this
// name is there already.
var ErrNameTaken = errors.New("name is taken in cocoon")

// ImportOptions names what an import makes.
type ImportOptions struct {
	Name        string // the snapshot's name in cocoon
	Description string // empty: as the tar has it
}

// Exec runs the cocoon binary as a child process.
type Exec struct {
	Binary string    // as ResolveBinary returns it
	Stderr io.Writer // gets what cocoon says; nil for nobody
}

// Snapshot is one line of cocoon's list.
type Snapshot struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// ResolveBinary returns the path of the cocoon binary: envValue where it
// is not blank (a path, or a name to look for in PATH), else "cocoon" in
// PATH.
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

// unwrapExec takes away the words that exec's error would say twice.
func unwrapExec(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

// Export starts `cocoon snapshot export` and returns the tar it writes.
// The caller reads to io.EOF, or closes the reader to end it early, and
// then calls wait, which says whether the tar is whole. When ctx ends,
// cocoon is asked to stop, and is killed when it does not.
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
			return err // there was something to export
		}
		return e.exported(ctx, name, err)
	}, nil
}

// noted notes that something was read.
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

// checkName refuses what cocoon would not take for a name but a flag.
func checkName(name string) error {
	if name == "" || strings.HasPrefix(name, "-") {
		return fmt.Errorf("%q is not a name for cocoon", name)
	}
	return nil
}

// exported tells a snapshot that is not there from an export that failed.
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
// writer returned. The caller writes the tar, closes the writer and calls
// wait, which says whether the snapshot is there. To give up, it writes a
// block that cannot be a tar header before it closes: cocoon then removes
// what it made, while a bare end at an entry's boundary would be taken
// for a whole snapshot. For that reason the end of ctx kills cocoon only
// after a grace time, in which the caller can still say so.
func (e *Exec) Import(ctx context.Context, opts ImportOptions) (tar io.WriteCloser, wait func() error, err error) {
	args := []string{"snapshot", "import", "--name", opts.Name}
	if opts.Description != "" {
		args = append(args, "--description", opts.Description)
	}
	c := e.command(ctx, args...)
	// ErrProcessDone: nothing was signalled, so what counts is how cocoon
	// itself ends within the grace time.
	c.cmd.Cancel = func() error { return os.ErrProcessDone }
	return c.startWriter()
}

// ImageImport starts `cocoon image import`, which reads a disk image from
// the writer returned. Nothing in such a stream can say that it was cut
// short, so to give up the caller ends ctx, which kills cocoon at once,
// and calls wait without having closed the writer.
func (e *Exec) ImageImport(ctx context.Context, name string) (image io.WriteCloser, wait func() error, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	c := e.command(ctx, "image", "import", name)
	c.cmd.Cancel = func() error { return c.cmd.Process.Kill() }
	return c.startWriter()
}

// List returns the snapshots that cocoon has.
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
		return nil, nil // with none, cocoon says so in words, in either format
	}
	var all []Snapshot
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, c.failed(fmt.Errorf("list is not JSON: %w", err))
	}
	return all, nil
}

// CheckFree fails with ErrNameTaken when cocoon has a snapshot of this
// name. Cocoon itself would say so too, but only after it has read the
// whole tar.
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
