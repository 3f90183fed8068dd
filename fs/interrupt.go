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

// A signal for the reader interrupts its READ, whether it will end the
// reader or not. Where a handle is cached, the READs that can be
// interrupted at all come from page faults, and there EINTR turns into
// EFAULT (tried) or SIGBUS: a hypervisor would die of a timer. So only a
// reader that is about to die gets EINTR there, as with NFS and local
// disks. With O_DIRECT the caller of read(2) sees the EINTR, and gets it
// for every signal.

// leaveCheck is how often a read that goes on after a signal looks
// whether its reader has to die: the kernel reports only the first.
const leaveCheck = 20 * time.Millisecond

// readInterrupted decides what becomes of a read whose request was
// interrupted before its bytes were there.
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

// watch cancels when the reader leaves. It returns when ctx ends.
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

// leaving says that nobody will miss the answer: the connection or the
// thread has ended, or the thread is about to. Of a thread that cannot be
// seen from here the same is assumed, so that Ctrl-C always works.
func (t *tree) leaving(pid uint32) bool {
	if pid == 0 || t.kernel.dead() {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || killed(status)
}

// killed finds SIGKILL among a thread's pending signals: the kernel puts
// it there for every signal that ends the process, all but those that
// dump core.
func killed(status []byte) bool {
	for _, field := range []string{"\nSigPnd:", "\nShdPnd:"} {
		_, rest, ok := bytes.Cut(status, []byte(field))
		if !ok {
			return true // no such thread's status looks like this
		}
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		set, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil || set&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
