package fs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Unmount unmounts the topmost mount on dir, of this or another process. It
// fails with EBUSY while the mount is in use, and with EINVAL if nothing is
// mounted on dir. If lazy is true, it detaches a mount in use, which ends
// with its last user.
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

// Stale reports whether dir is an epochfs mount whose process is gone, for
// which users see "Transport endpoint is not connected". A live but slow
// mount is not stale.
func Stale(dir string) bool {
	dir, err := Canonical(dir)
	if err != nil {
		return false
	}
	at, err := mountsAt(dir)
	if err != nil || len(at) == 0 || at[len(at)-1].FSType != fuseType {
		return false
	}
	// The kernel would answer stat from its cache; statfs asks the
	// process. The goroutine stays behind as long as the mount does not
	// answer.
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

// CleanStale unmounts dead mounts from dir, several if they are stacked. It
// does nothing if Stale returns false.
func CleanStale(dir string) error {
	for Stale(dir) {
		if err := Unmount(dir, true); err != nil {
			return err
		}
	}
	return nil
}

// mountsAt lists the mounts on dir, the topmost last. dir must be a result
// of Canonical.
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
