package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
)

// readyEnv tells the process that is to stay behind which descriptor it
// reports on, once: that the mount is ready, or why it never will be.
const readyEnv = "EPOCHFS_READY_FD"

// outcome is what goes over the pipe.
type outcome struct {
	Output string `json:"output"` // for stdout
	Error  string `json:"error"`  // for stderr, when Code is not 0
	Code   int    `json:"code"`   // to exit with
}

// startBehind runs this command again, in a session of its own, and
// returns when that process says that the mount is ready.
func startBehind(ctx context.Context, out io.Writer) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0] // we may be a mount helper by that name
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	if cmd.Env, err = envFromAnywhere(os.Environ()); err != nil {
		w.Close()
		return err
	}
	cmd.Env = append(cmd.Env, readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the process behind the mount: %w", err)
	}
	// Ctrl-C does not reach the other session by itself.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var got outcome
	if err := json.NewDecoder(r).Decode(&got); err != nil {
		return fmt.Errorf("the process behind the mount ended before it was ready: %w", errors.Join(cmd.Wait(), ctx.Err()))
	}
	if got.Code != exitOK {
		_ = cmd.Wait() // it ends with the code it has told
		return &exitError{text: got.Error, code: got.Code}
	}
	_, err = io.WriteString(out, got.Output)
	return errors.Join(err, cmd.Process.Release())
}

// pathEnvs name files and directories that are looked at as long as the
// mount is there.
var pathEnvs = []string{
	"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "EPOCH_CA_CERT", "SSL_CERT_FILE",
	mounting.HostsDirEnv, mounting.CacheDirEnv, control.DirEnv,
}

// envFromAnywhere is an environment whose paths mean the same in every
// directory: the process behind leaves the one that it was started in.
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

// readiness is the process behind's end of the pipe.
type readiness struct{ f *os.File }

// readyPipe returns the pipe this process reports on; nil when nobody
// waits for a report.
var readyPipe = sync.OnceValue(func() *readiness {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	if err != nil || fd < 3 {
		return nil
	}
	os.Unsetenv(readyEnv)
	syscall.CloseOnExec(fd)
	return &readiness{os.NewFile(uintptr(fd), "ready")}
})

func (r *readiness) send(o outcome) error {
	return errors.Join(json.NewEncoder(r.f).Encode(o), r.f.Close())
}

// failed reports err and returns what makes this process end as silently
// as it should: the other one prints.
func (r *readiness) failed(err error) error {
	code := exitCode(err)
	_ = r.send(outcome{Error: message(err), Code: code})
	return &exitError{code: code}
}

// ready reports that the mount is, and cuts the ties to where the user
// called from: directory and terminal. What would go there goes to the
// log file, if there is one.
func (r *readiness) ready(output, logFile string) error {
	name := os.DevNull
	if logFile != "" {
		name = logFile
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// The user may wait for the end of stderr: let go of it first.
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return err
		}
	}
	if err := r.send(outcome{Output: output}); err != nil {
		return err
	}
	return os.Chdir("/")
}
