package main

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loopingBack is the name under which this program calls itself to be the
// loopback file system.
const loopingBack = "loopback"

// serveLoopback is go-fuse's loopback example, but for one thing: when
// it has mounted it gives up CAP_SYS_ADMIN. Otherwise it would hand its
// files to the kernel, and not be a file system in a process any more.
func serveLoopback(dir, orig string) error {
	root, err := fs.NewLoopbackRoot(orig)
	if err != nil {
		return err
	}
	second := time.Second
	server, err := fs.Mount(dir, root, &fs.Options{
		AttrTimeout:  &second,
		EntryTimeout: &second,
		MountOptions: fuse.MountOptions{FsName: orig, Name: "loopback", Options: []string{"ro"}},
	})
	if err != nil {
		return err
	}
	if err := dropAdmin(); err != nil {
		return err
	}
	server.Wait()
	return nil
}

// dropAdmin takes CAP_SYS_ADMIN from all threads.
func dropAdmin() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	caps[0].Permitted &^= 1 << unix.CAP_SYS_ADMIN
	caps[0].Inheritable &^= 1 << unix.CAP_SYS_ADMIN
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&caps[0])), 0)
	runtime.KeepAlive(&caps)
	if errno != 0 {
		return errno
	}
	return nil
}
