package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

// outcome is the message on the pipe from the process that mounts.
type outcome struct {
	Output string `json:"output"` // for stdout
	Error  string `json:"error"`  // for stderr, when Code is not 0
	Code   int    `json:"code"`   // exit code
}

// startBehind starts a keeper, which starts the process that mounts. It
// returns once the mount is ready.
func (opts *mountOptions) startBehind(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	start, err := opts.keeperStart()
	if err != nil {
		return err
	}
	if start.Log, err = openLog(opts.logFile); err != nil {
		return err
	}
	defer start.Log.Close()
	start.Ready = w
	if start.SameGroup, err = mounts.Automounted(opts.dir); err != nil {
		return err
	}
	cmd, err := start.Command()
	if err != nil {
		return err
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the process behind the mount: %w", err)
	}
	// Ctrl-C does not reach another session.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var got outcome
	if err := json.NewDecoder(r).Decode(&got); err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it reports the failure to this process
		return fmt.Errorf("the process behind the mount ended before it was ready: %w", errors.Join(cmd.Wait(), ctx.Err()))
	}
	if got.Code != exitOK {
		_ = cmd.Wait() // its exit code was already reported
		return &exitError{text: got.Error, code: got.Code}
	}
	lookAt(opts.dir)
	if opts.wait == waitSet {
		if err := opts.awaitSet(ctx); err != nil {
			return err
		}
	}
	_, err = io.WriteString(opts.out, got.Output)
	return errors.Join(err, cmd.Process.Release())
}

// lookAt makes the files of a mount known to the kernel, which takes pages of no
// others. The processes that serve and keep the mount must not wait for it; this
// one may. An error does not matter: an open looks the file up as well.
func lookAt(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		_, _ = e.Info()
	}
}

// keeperStart returns what the keeper of this mount is started with.
func (opts *mountOptions) keeperStart() (keeper.Start, error) {
	args, err := workerArgs(opts.flags, opts.reference, opts.dir)
	if err != nil {
		return keeper.Start{}, err
	}
	env, err := envFromAnywhere(os.Environ())
	if err != nil {
		return keeper.Start{}, err
	}
	s := keeper.Start{Args: args, Env: env, JSON: opts.logFormat == "json"}
	if s.Sockets, err = control.MakeDir(); err != nil {
		s.Sockets = ""
		opts.log.Warn("epochfs restart will not find this mount", "error", err)
	}
	return s, nil
}

// pathFlags take paths, which must be made absolute for a process with
// another working directory.
var pathFlags = []string{"cache-dir", "hosts-dir", "log-file", "record"}

// workerArgs returns the command line of the processes that serve the mount,
// now and after restarts: all flags that were set.
func workerArgs(flags *pflag.FlagSet, reference, dir string) ([]string, error) {
	args := []string{"epochfs", "mount"}
	var errs error
	flags.Visit(func(f *pflag.Flag) {
		if slices.Contains([]string{"options", "sloppy", "fake", "foreground", "wait"}, f.Name) {
			return
		}
		arg, err := flagArg(f)
		errs = errors.Join(errs, err)
		args = append(args, arg)
	})
	return append(args, "--", reference, dir), errs
}

// flagArg returns the argument that gives another process the same flag.
func flagArg(f *pflag.Flag) (arg string, err error) {
	value := f.Value.String()
	if size, ok := f.Value.(*byteSize); ok {
		value = strconv.FormatInt(int64(*size), 10)
	} else if value != "" && slices.Contains(pathFlags, f.Name) {
		value, err = filepath.Abs(value)
	}
	return "--" + f.Name + "=" + value, err
}

// pathEnvs contain paths that are used as long as the mount exists.
var pathEnvs = []string{
	"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "EPOCH_CA_CERT", "SSL_CERT_FILE",
	mounting.HostsDirEnv, mounting.CacheDirEnv, control.DirEnv,
}

// envFromAnywhere returns the environment with absolute paths, for a process
// with another working directory.
func envFromAnywhere(env []string) ([]string, error) {
	env = slices.Clone(env)
	for i, kv := range env {
		name, path, _ := strings.Cut(kv, "=")
		if path == "" || filepath.IsAbs(path) || !slices.Contains(pathEnvs, name) {
			continue
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		env[i] = name + "=" + path
	}
	return env, nil
}

// readiness is the end of the pipe on which the serving process reports,
// once, that the mount is ready or why it failed.
type readiness struct{ f *os.File }

// readyPipe returns the pipe that this process reports on, or nil if no
// process waits for a report.
func readyPipe(link *keeper.Link) *readiness {
	if link == nil {
		return nil
	}
	if f := link.Ready(); f != nil {
		return &readiness{f}
	}
	return nil
}

func (r *readiness) send(o outcome) error {
	return errors.Join(json.NewEncoder(r.f).Encode(o), r.f.Close())
}

// failed reports err and returns an error without text, because the other
// process prints it.
func (r *readiness) failed(err error) error {
	code := exitCode(err)
	_ = r.send(outcome{Error: message(err), Code: code})
	return &exitError{code: code}
}

// ready reports that the mount is ready, and detaches from the terminal.
// What would be printed there goes to the log file, if there is one.
func (r *readiness) ready(output, logFile string) error {
	f, err := openLog(logFile)
	if err != nil {
		return err
	}
	defer f.Close()
	// The user may wait for the end of stderr: close it first.
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return err
		}
	}
	_, _ = unix.Setsid() // fails if it was done at the start
	return r.send(outcome{Output: output})
}

// openLog opens the existing log file for what a process writes to stderr,
// or /dev/null if name is "".
func openLog(name string) (*os.File, error) {
	if name == "" {
		name = os.DevNull
	}
	return os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
}
