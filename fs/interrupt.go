package fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Any signal to the reader interrupts its READ, whether or not the signal
// will end the reader. With a cached handle only page faults send READs that
// can be interrupted, and EINTR then becomes EFAULT (tried) or SIGBUS: a
// timer would kill a hypervisor. So only a reader that is about to die gets
// EINTR there, as with NFS and local disks. With O_DIRECT the caller of
// read(2) gets EINTR for every signal.

// leaveCheck is how often a read that continues after a signal checks
// whether its reader is about to die: the kernel reports only the first
// signal.
const leaveCheck = 20 * time.Millisecond

// readInterrupted finishes or fails a read whose request was interrupted
// before its bytes arrived.
func (t *tree) readInterrupted(n *node, in *fuse.ReadIn, p []byte, off int64) error {
	if h, ok := t.handles.get(in.Fh); ok && h.mode == direct || t.leaving(in.Pid) {
		return errInterrupted
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.watch(ctx, cancel, in.Pid)
	}()
	err := readFull(ctx, n.Content, p, off)
	left := ctx.Err() != nil
	cancel()
	<-done
	if err != nil && left {
		return errInterrupted
	}
	return err
}

// watch calls cancel when the reader is leaving. It returns when ctx ends.
func (t *tree) watch(ctx context.Context, cancel func(), pid uint32) {
	tick := time.NewTicker(leaveCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if t.leaving(pid) {
				cancel()
				return
			}
		}
	}
}

// leaving reports whether the answer is no longer needed: the connection or
// the reading thread has ended, or the thread is about to. It returns true
// for a thread that is not visible from here, so that Ctrl-C always works.
func (t *tree) leaving(pid uint32) bool {
	if pid == 0 || t.kernel.dead() {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || killed(status)
}

// killed reports whether SIGKILL is among a thread's pending signals. The
// kernel adds SIGKILL for every signal that ends the process, except those
// that dump core.
func killed(status []byte) bool {
	for _, field := range []string{"\nSigPnd:", "\nShdPnd:"} {
		_, rest, ok := bytes.Cut(status, []byte(field))
		if !ok {
			return true // not the status of any thread
		}
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		set, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil || set&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
