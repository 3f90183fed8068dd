package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/workingset"
)

const (
	// commandGrace is how long the recorded command has to end after SIGTERM,
	// and how long others may use the mount after it has ended.
	commandGrace = 10 * time.Second
	// lookEvery is how often a recording's file is looked at.
	lookEvery = 20 * time.Millisecond
)

// record runs the command once, on a mount of its own, and returns what it
// touched.
func (opts *recordOptions) record(ctx context.Context, reference string) (set *workingset.Set, err error) {
	dir, err := os.MkdirTemp("", "epochfs-record-")
	if err != nil {
		return nil, err
	}
	// Not what is in the mount, should that still be there.
	defer func() {
		for _, name := range []string{"mnt", "set", ""} {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}()
	r := recordRun{mnt: filepath.Join(dir, "mnt"), file: filepath.Join(dir, "set")}
	if err := os.Mkdir(r.mnt, 0o755); err != nil {
		return nil, err
	}
	if err := opts.mountRecording(ctx, reference, &r); err != nil {
		return nil, err
	}
	ranErr := r.run(ctx, opts.command, opts.window)
	if err := r.unmount(); err != nil {
		return nil, errors.Join(ranErr, err)
	}
	if ranErr != nil {
		return nil, ranErr
	}
	return r.result()
}

// mountRecording has another process mount, as the user would.
func (opts *recordOptions) mountRecording(ctx context.Context, reference string, r *recordRun) error {
	args := []string{"epochfs", "mount"}
	var errs error
	opts.flags.Visit(func(f *pflag.Flag) {
		if f.Name == "json" {
			return
		}
		arg, err := flagArg(f)
		errs = errors.Join(errs, err)
		args = append(args, arg)
	})
	if errs != nil {
		return errs
	}
	args = append(args, "--record="+r.file, "--record-window="+opts.window.String(), "--record-quiet="+opts.settled.String(),
		fmt.Sprintf("--allow-other=%v", opts.others), "--", reference, r.mnt)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = args
	cmd.Stderr = os.Stderr
	var exit *exec.ExitError
	err := cmd.Run()
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{text: "the mount to record failed", code: exit.ExitCode()} // it has said why
	}
	return err
}

// recordRun is one run of the command on a mount that records.
type recordRun struct {
	mnt, file string
	seen      time.Time // of the file that was looked at last
}

// run runs the command until the recording has ended, and ends it then.
func (r *recordRun) run(ctx context.Context, command []string, window time.Duration) error {
	var args []string
	for _, arg := range command {
		args = append(args, strings.ReplaceAll(arg, "{}", r.mnt))
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // stdout is for the result
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", errCommand, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	running, err := r.follow(ctx, ended, window)
	if running {
		end(cmd.Process.Pid, ended)
	}
	return err
}

// follow returns when the recording has ended or nobody can go on with it.
// running reports whether the command still runs.
func (r *recordRun) follow(ctx context.Context, ended <-chan error, window time.Duration) (running bool, err error) {
	over := time.NewTimer(window)
	defer over.Stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	running = true
	for {
		select {
		case <-ctx.Done():
			return running, ctx.Err()
		case <-over.C:
			return running, nil
		case err := <-ended:
			running, ended = false, nil
			if err != nil {
				return false, fmt.Errorf("%w: %w", errCommand, err)
			}
		case <-tick.C:
			if r.complete() {
				return running, nil
			}
		}
		// A command may leave a VM behind. If it did not, nothing more comes.
		if !running && fs.Unmount(r.mnt, false) == nil {
			return false, nil
		}
	}
}

// complete reports whether the recording has ended by itself.
func (r *recordRun) complete() bool {
	st, err := os.Stat(r.file)
	if err != nil || st.ModTime().Equal(r.seen) {
		return false
	}
	r.seen = st.ModTime()
	set, err := readSet(r.file)
	return err == nil && !set.Partial
}

// end ends a command and what it has started.
func end(pid int, ended <-chan error) {
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(commandGrace):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-ended
	}
}

// unmount unmounts, if that was not done. What still uses the mount after a
// while loses it.
func (r *recordRun) unmount() error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		err := runUmount(r.mnt, false)
		if err == nil || errors.Is(err, errNotFound) {
			return nil
		}
		if time.Since(begun) > commandGrace {
			return errors.Join(err, fs.Unmount(r.mnt, true))
		}
	}
}

// result returns the recording once the mount's process has written it. If
// that was killed, what it had written is partial.
func (r *recordRun) result() (*workingset.Set, error) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		set, err := readSet(r.file)
		if err != nil || !set.Partial || time.Since(begun) > commandGrace {
			return set, err
		}
	}
}
