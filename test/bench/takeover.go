package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// opener opens a file, reads a page and closes it, without end, and records
// the time of each round. The serving process is asked at each open, even if
// the kernel reads the file itself.
type opener struct {
	path string
	size int64
	end  chan struct{}
	done sync.WaitGroup

	mu  sync.Mutex
	ops []op
	err error
}

type op struct{ began, ended time.Time }

func startOpener(path string, size int64) *opener {
	o := &opener{path: path, size: size, end: make(chan struct{})}
	o.done.Go(func() {
		buf := aligned(pageSize)
		defer unix.Munmap(buf)
		rng := rand.New(rand.NewPCG(1, 9))
		for {
			select {
			case <-o.end:
				return
			default:
			}
			began := time.Now()
			err := openAndRead(path, buf, rng.Int64N(size/pageSize)*pageSize)
			o.mu.Lock()
			o.ops = append(o.ops, op{began, time.Now()})
			o.err = err
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return o
}

func openAndRead(path string, buf []byte, off int64) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if n, err := unix.Pread(fd, buf, off); err != nil || n != len(buf) {
		return fmt.Errorf("read %s: %d bytes, %w", path, n, err)
	}
	return nil
}

// worst returns the longest wait that ended at t or later, in milliseconds.
// Earlier waits are forgotten.
func (o *opener) worst(t time.Time) (ms float64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, op := range o.ops {
		if op.ended.After(t) {
			ms = max(ms, op.ended.Sub(op.began).Seconds()*1e3)
		}
	}
	o.ops = o.ops[:0]
	return ms, o.err
}

func (o *opener) stop() {
	close(o.end)
	o.done.Wait()
}

// processes are the processes of a mount, from its status.
type processes struct {
	PID    int `json:"pid"`
	Keeper int `json:"keeper_pid"`
}

// served returns when another process than before serves the mount.
func (m *mount) served(before int) (p processes, err error) {
	err = eventually(20*time.Second, func() error {
		out, err := exec.Command(m.b.epochfs, "status", "--json", m.dir).Output()
		if err != nil {
			return err
		}
		var all struct{ Mounts []processes }
		if err := json.Unmarshal(out, &all); err != nil {
			return err
		}
		if p = all.Mounts[0]; p.PID == 0 || p.PID == before {
			return errors.New("no other process serves the mount")
		}
		m.PID = p.PID
		return nil
	})
	return p, err
}

// changes has the process changed n times, pause apart, and returns how
// long readers waited each time, in milliseconds.
func (m *mount) changes(ctx context.Context, o *opener, n int, pause time.Duration, change func(pid int) error) (sample, error) {
	var all sample
	p, err := m.served(0)
	if err != nil {
		return all, err
	}
	for range n {
		if _, err := o.worst(time.Now()); err != nil {
			return all, err
		}
		began := time.Now()
		if err := change(p.PID); err != nil {
			return all, err
		}
		select {
		case <-time.After(time.Until(began.Add(pause))):
		case <-ctx.Done():
			return all, ctx.Err()
		}
		ms, err := o.worst(began)
		if err != nil {
			return all, err
		}
		all = append(all, ms)
		if p, err = m.served(p.PID); err != nil {
			return all, err
		}
	}
	return all, nil
}

// anonymous is memory of a process that is its own, in MiB.
func anonymous(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var kib float64
	_, err = fmt.Sscan(field(string(text), "RssAnon"), &kib)
	return kib / 1024, err
}

// mountAlone mounts without a keeper, and with nothing handed over: the
// process believes in a store of systemd's that is too small.
func (b *bench) mountAlone(ctx context.Context, addr, tag string, flags ...string) (*mount, error) {
	dir, err := os.MkdirTemp(b.dir, "alone-")
	if err != nil {
		return nil, err
	}
	m := &mount{b: b, dir: filepath.Join(dir, "mnt"), cache: filepath.Join(dir, "cache")}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return nil, err
	}
	args := append([]string{"mount", "--foreground", addr + "/" + repo + ":" + tag, m.dir, "--cache-dir", m.cache, "--json", "--quiet"}, flags...)
	cmd := exec.CommandContext(ctx, b.epochfs, args...)
	ours := func(kv string) bool { return strings.HasPrefix(kv, "SYSTEMD_EXEC_PID=") }
	cmd.Env = append(slices.DeleteFunc(os.Environ(), ours), "NOTIFY_SOCKET="+filepath.Join(dir, "nobody"), "FDSTORE=1")
	// As a keeper's workers are: the kernel gives each session a share.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // it ends with the mount
	if err := json.NewDecoder(out).Decode(m); err != nil {
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("epochfs mount --foreground: %w", err)
	}
	return m, nil
}
