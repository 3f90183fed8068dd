package fs

import (
	"errors"
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Support describes the FUSE features that the kernel offers to this user.
type Support struct {
	Protocol    string // version, such as 7.45
	Passthrough error  // why the kernel would not read a backing file; nil if it would
	Resend      bool   // the kernel can send unanswered requests again
}

// ErrNotOffered is the error of a kernel without passthrough.
var ErrNotOffered = errors.New("the kernel does not offer it")

// Probe mounts an empty file system on the empty directory dir, determines
// the kernel's features, and unmounts it. It tries passthrough with backing
// as the backing file.
func Probe(dir string, backing *os.File) (s Support, err error) {
	if dir, err = mountPoint(dir); err != nil {
		return s, err
	}
	fd, err := mountFUSE(dir, &Options{FSName: "epochfs-doctor"})
	if err != nil {
		return s, fmt.Errorf("mount %s: %w", dir, err)
	}
	server, err := fuse.NewServer(fuse.NewDefaultRawFileSystem(), fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		Name: "epochfs", DisableSplice: true,
	})
	if err != nil {
		return s, errors.Join(fmt.Errorf("mount %s: %w", dir, err), Unmount(dir, true))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve()
	}()
	kernel := server.KernelSettings()
	s.Protocol = fmt.Sprintf("%d.%d", kernel.Major, kernel.Minor)
	s.Resend = kernel.Flags64()&hasResend != 0
	s.Passthrough = tryPassthrough(server, kernel.Flags64(), backing)
	err = Unmount(dir, true)
	if err == nil {
		<-done
	}
	return s, err
}

func tryPassthrough(server *fuse.Server, offered uint64, backing *os.File) error {
	if offered&fuse.CAP_PASSTHROUGH == 0 {
		return ErrNotOffered
	}
	id, errno := server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(backing.Fd())})
	switch errno {
	case 0:
		_ = server.UnregisterBackingFd(id) // it ends with the mount anyway
		return nil
	case unix.ENOTTY:
		return ErrNotOffered
	}
	return errno
}
