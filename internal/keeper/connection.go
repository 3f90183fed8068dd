package keeper

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// connections is where the kernel shows FUSE connections. It may not be
// mounted, and what is in it is for the user who mounted.
var connections = "/sys/fs/fuse/connections"

// kept says whether there is a connection that can go on without its
// worker.
func (k *keeper) kept() bool { return len(k.store[Device]) > 0 && len(k.store[Memory]) > 0 }

// dead says that the connection, a kept one, has ended: it was unmounted or
// aborted.
func (k *keeper) dead() bool {
	p := []unix.PollFd{{Fd: int32(k.store[Device][0])}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

func (k *keeper) control(name string) string { return connections + "/" + k.connection + "/" + name }

// waiting says whether requests wait for an answer, or that cannot be
// known.
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

// giveUp ends the connection: who waits gets an error. Without the
// kernel's switch it ends when the last descriptor is closed, ours.
func (k *keeper) giveUp(why string) {
	k.log.Error("the mount is given up", "dir", k.dir, "cause", why)
	_ = os.WriteFile(k.control("abort"), []byte("1"), 0)
	if k.serving != nil {
		k.serving.kill("", k.log)
		k.serving.reap()
	}
	k.killNext()
	for _, fds := range k.store {
		closeAll(fds)
	}
}
