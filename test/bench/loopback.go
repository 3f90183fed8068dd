package main

import (
	"context"
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

// serveLoopback is go-fuse's loopback example, but for two things that
// would make it something else than a file system in a process with its
// data at hand: it does not hand its files to the kernel (having mounted,
// it gives up CAP_SYS_ADMIN), and it does not pass O_DIRECT on to the disk.
func serveLoopback(dir, orig string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(orig, &st); err != nil {
		return err
	}
	data := &fs.LoopbackRoot{Path: orig, Dev: uint64(st.Dev)}
	data.RootNode = &buffered{fs.LoopbackNode{RootData: data}}
	second := time.Second
	server, err := fs.Mount(dir, data.RootNode, &fs.Options{
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

// buffered is a loopback node whose reads come from the page cache of the
// file below.
type buffered struct{ fs.LoopbackNode }

var (
	_ fs.NodeOpener      = (*buffered)(nil)
	_ fs.NodeWrapChilder = (*buffered)(nil)
)

func (n *buffered) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &buffered{fs.LoopbackNode{RootData: child.(*fs.LoopbackNode).RootData}}
}

func (n *buffered) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return n.LoopbackNode.Open(ctx, flags&^unix.O_DIRECT)
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
