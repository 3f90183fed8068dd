package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// slowing is the name under which this program calls itself to show a file
// whose bytes come and go slowly: DIR FILE RATE. A loop device over that is a
// slow disk.
const slowing = "slow-file"

const slowName = "disk.img"

// slowDisk makes an ext4 file system on a disk of so many bytes that moves rate
// bytes per second, mounted with options.
func (b *bench) slowDisk(ctx context.Context, size int64, rate float64, options string) (dir string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	made := filepath.Join(b.dir, "slow.img")
	f, err := os.Create(made)
	if err != nil {
		return "", nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return "", nil, err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1", made).CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	file, err := b.startForeign(ctx, self, func(dir string) []string {
		return []string{slowing, dir, made, strconv.FormatFloat(rate, 'f', 0, 64)}
	})
	if err != nil {
		return "", nil, err
	}
	dir, err = os.MkdirTemp(b.dir, "slow-")
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(ctx, "mount", "-o", options, filepath.Join(file.dir, slowName), dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("mount -o %s: %w: %s", options, err, out)
		}
	}
	if err != nil {
		file.stop()
		return "", nil, err
	}
	return dir, func() {
		_ = unix.Unmount(dir, 0) // writes what is dirty, and the loop device goes with it
		file.stop()
		_ = os.Remove(made)
	}, nil
}

// serveSlowFile is the other end of slowDisk.
func serveSlowFile(dir, path, perSecond string) error {
	limit, err := strconv.ParseFloat(perSecond, 64)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	root := &slowRoot{file: &slowFile{data: f, pace: rate.NewLimiter(rate.Limit(limit), 1<<20)}}
	server, err := fs.Mount(dir, root, &fs.Options{MountOptions: fuse.MountOptions{Name: "slow", MaxWrite: 1 << 20}})
	if err != nil {
		return err
	}
	server.Wait()
	return nil
}

type slowRoot struct {
	fs.Inode
	file *slowFile
}

// OnAdd puts the file into the directory.
func (r *slowRoot) OnAdd(ctx context.Context) {
	r.AddChild(slowName, r.NewPersistentInode(ctx, r.file, fs.StableAttr{Mode: fuse.S_IFREG}), true)
}

// slowFile is a file of which each byte that is read or written takes time.
type slowFile struct {
	fs.Inode
	data *os.File
	pace *rate.Limiter
}

var (
	_ fs.NodeOnAdder   = (*slowRoot)(nil)
	_ fs.NodeOpener    = (*slowFile)(nil)
	_ fs.NodeGetattrer = (*slowFile)(nil)
	_ fs.NodeReader    = (*slowFile)(nil)
	_ fs.NodeWriter    = (*slowFile)(nil)
	_ fs.NodeFsyncer   = (*slowFile)(nil)
)

// Open has the kernel keep no pages: those of the disk above are enough.
func (f *slowFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *slowFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	st, err := f.data.Stat()
	if err != nil {
		return fs.ToErrno(err)
	}
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(st.Size())
	return 0
}

func (f *slowFile) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.wait(len(p))
	n, err := f.data.ReadAt(p, off)
	if n > 0 {
		err = nil
	}
	return fuse.ReadResultData(p[:n]), fs.ToErrno(err)
}

func (f *slowFile) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	f.wait(len(p))
	n, err := f.data.WriteAt(p, off)
	return uint32(n), fs.ToErrno(err)
}

func (f *slowFile) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

// wait takes as long as n bytes do.
func (f *slowFile) wait(n int) {
	time.Sleep(f.pace.ReserveN(time.Now(), n).Delay())
}
