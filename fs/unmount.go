package fs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Unmount takes the topmost mount off dir, of this or another process. It
// fails with EBUSY while somebody uses it, and with EINVAL where nothing
// is mounted; lazy detaches it all the same, and it ends when the last
// user has left.
func Unmount(dir string, lazy bool) error {
	dir, err := Canonical(dir)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err = unix.Unmount(dir, flags)
	} else if lazy {
		err = runHelper(nil, "-u", "-z", "--", dir)
	} else {
		err = runHelper(nil, "-u", "--", dir)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// staleWait is how long Stale waits for a mount that does not answer.
const staleWait = 2 * time.Second

// Stale says whether dir is a mount of ours whose process is gone, which
// users see as "Transport endpoint is not connected". A mount that is
// there and slow is not stale.
func Stale(dir string) bool {
	dir, err := Canonical(dir)
	if err != nil {
		return false
	}
	at, err := mountsAt(dir)
	if err != nil || len(at) == 0 || at[len(at)-1].FSType != fuseType {
		return false
	}
	// stat would be answered from what the kernel remembers; statfs asks.
	// The goroutine stays behind for as long as the mount does not answer.
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(staleWait):
		return false
	}
}

// CleanStale takes dead mounts off dir, several if they lie on top of
// each other. It does nothing where Stale is false.
func CleanStale(dir string) error {
	for Stale(dir) {
		if err := Unmount(dir, true); err != nil {
			return err
		}
	}
	return nil
}

// mountsAt lists what is mounted on dir, the topmost last. dir must be as
// Canonical gives it.
func mountsAt(dir string) ([]*mountinfo.Info, error) {
	at, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != dir, false
	})
	if err != nil {
		return nil, fmt.Errorf("read the list of mounts: %w", err)
	}
	return at, nil
}

func device(i *mountinfo.Info) string { return fmt.Sprintf("%d:%d", i.Major, i.Minor) }
