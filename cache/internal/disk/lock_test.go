package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHoldersAskNoFiles has a process with a file open on a file system
// that never answers: whoever looks for the holder of a lock does not wait
// for it.
func TestHoldersAskNoFiles(t *testing.T) {
	dir := t.TempDir()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(dev)
	if err := unix.Mount("silent", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev)); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	silent, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(silent)
	f, err := os.Create(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Lock(f, unix.F_WRLCK, LockSetup, 1); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	go func() { told <- holders(f, LockSetup, 1) }()
	select {
	case who := <-told:
		if want := fmt.Sprintf("process %d", os.Getpid()); who != want {
			t.Errorf("%q, not %q", who, want)
		}
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
}
