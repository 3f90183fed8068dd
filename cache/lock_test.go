package cache

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/test/tier"
)

// lockFileEnv makes the test binary a process that holds the set-up lock of
// this file, and stops itself.
const lockFileEnv = "EPOCHFS_TEST_LOCK_FILE"

func stoppingProcess(name string) {
	t := &quiet{}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	t.must(err)
	t.must(disk.Lock(f, unix.F_WRLCK, disk.LockSetup, 1))
	t.must(syscall.Kill(os.Getpid(), syscall.SIGSTOP))
	select {}
}

// TestStoppedInSetup has a process stopped while it sets a cached file up.
// Others go on without sharing that file, and are told by whom it is held.
func TestStoppedInSetup(t *testing.T) {
	tier.Long(t, "waits for a stopped process")
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	dir := t.TempDir()
	var log bytes.Buffer // written to by c.File alone
	c := openCache(t, dir, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	name := filepath.Join(dir, disk.Files, a.file.Key()+".state")
	stopped := stopWithLock(t, name)
	began := time.Now()
	h := openFile(t, c, a.file, src)
	if took := time.Since(began); took > disk.LockPatience+time.Minute {
		t.Errorf("waited for %v", took)
	}
	checkRead(t, h, a.flat, 0, len(a.flat))
	_ = h.Close()
	if !strings.Contains(log.String(), fmt.Sprintf("process %d", stopped.Process.Pid)) {
		t.Errorf("it is not told who holds the file: %s", log.String())
	}
}

// stopWithLock returns a process that is stopped and holds the set-up lock
// of a state file.
func stopWithLock(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	stopped := exec.Command(os.Args[0])
	stopped.Env = append(os.Environ(), lockFileEnv+"="+name)
	if err := stopped.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stopped.Process.Kill(); _ = stopped.Wait() })
	eventually(t, "the process is stopped", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stopped.Process.Pid))
		return err == nil && strings.Contains(string(text), ") T ")
	})
	return stopped
}

// TestOpenKeepsNoReaderWaiting reads a file while the open of another has
// to wait.
func TestOpenKeepsNoReaderWaiting(t *testing.T) {
	tier.Long(t, "waits for slow answers")
	src := &fakeSource{}
	rng := newRand(t)
	a, b := makeFile(t, rng, src, kinds[0], 1<<20), makeFile(t, rng, src, kinds[2], 2<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, b.file, src)
	stopWithLock(t, filepath.Join(dir, disk.Files, a.file.Key()+".state"))
	opened := make(chan error, 1)
	go func() {
		f, err := c.File(a.file, src)
		if err == nil {
			err = f.Close()
		}
		opened <- err
	}()
	eventually(t, "the other file is being opened", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.opening) > 0
	})
	checkRead(t, h, b.flat, 0, len(b.flat))
	select {
	case <-opened:
		t.Error("the read waited for the open")
	default:
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
	_ = h.Close()
}
