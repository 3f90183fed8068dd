package keeper

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// connections is the directory of the kernel's FUSE connections. It may not
// be mounted, and its files belong to the user of each mount.
var connections = "/sys/fs/fuse/connections"

// kept reports whether the keeper holds a connection that can outlive its
// worker.
func (k *keeper) kept() bool { return len(k.store[Device]) > 0 && len(k.store[Memory]) > 0 }

// dead reports whether the connection has ended: it was unmounted or
// aborted. The connection must be kept.
func (k *keeper) dead() bool {
	p := []unix.PollFd{{Fd: int32(k.store[Device][0])}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

func (k *keeper) control(name string) string { return connections + "/" + k.connection + "/" + name }

// waiting reports whether requests wait for an answer. It returns true if
// that cannot be determined.
func (k *keeper) waiting() bool {
	f, err := os.Open(k.control("waiting"))
	if err != nil {
		return true
	}
	defer f.Close()
	var n int
	_, err = fmt.Fscan(io.LimitReader(f, 16), &n)
	return err != nil || n > 0
}

// giveUp ends the connection, so that pending requests fail. If it cannot be
// aborted, it ends when the keeper closes the last descriptor.
func (k *keeper) giveUp(why string) {
	k.log.Error("the mount is given up", "dir", k.dir, "cause", why)
	abort(k.connection)
	if k.serving != nil {
		k.serving.kill("", k.log)
		k.serving.reap()
	}
	k.killNext()
	for _, fds := range k.store {
		closeAll(fds)
	}
}
