package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	fuseDevice = "/dev/fuse"
	fuseHelper = "fusermount3" // setuid root, of package fuse3
	fuseType   = "fuse.epochfs"
)

// mountFUSE mounts on dir and returns the connection's descriptor, which no
// child inherits. It calls mount(2) as root, and the helper as any other
// user.
func mountFUSE(dir string, opts *Options) (int, error) {
	if _, err := os.Stat(fuseDevice); err != nil {
		return -1, fmt.Errorf("%w: %w (is the kernel module fuse loaded?)", ErrNoFUSE, err)
	}
	if os.Geteuid() != 0 {
		// The helper opens the device as this user, and its error is
		// verbose.
		if err := unix.Faccessat(unix.AT_FDCWD, fuseDevice, unix.R_OK|unix.W_OK, unix.AT_EACCESS); err != nil {
			return -1, fmt.Errorf("%w: this user may not open %s, whose mode is usually 0666: %w", ErrNoFUSE, fuseDevice, err)
		}
		return mountByHelper(dir, opts)
	}
	fd, err := mountDirect(dir, opts)
	if errors.Is(err, unix.EPERM) { // root in a container, without CAP_SYS_ADMIN
		if fd, err := mountByHelper(dir, opts); err == nil {
			return fd, nil
		}
		return -1, fmt.Errorf("%w: mounting is not permitted: %w", ErrNoFUSE, err)
	}
	return fd, err
}

// mountDirect calls mount(2), which needs CAP_SYS_ADMIN.
func mountDirect(dir string, opts *Options) (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: open %s: %w", ErrNoFUSE, fuseDevice, err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,max_read=%d%s",
		fd, os.Geteuid(), os.Getegid(), maxRequest, dataOf(opts))
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	if opts.NoExec {
		flags |= unix.MS_NOEXEC
	}
	err = unix.Mount(source(opts), dir, fuseType, flags, data)
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if err == unix.ENODEV {
		err = fmt.Errorf("%w: the kernel has no fuse: %w", ErrNoFUSE, err)
	}
	return -1, err
}

// dataOf returns the mount data for the options that not every mount has.
// SELinux takes its own options out.
func dataOf(opts *Options) (data string) {
	if opts.AllowOther {
		data += ",allow_other"
	}
	for _, c := range opts.Contexts {
		data += "," + c
	}
	return data
}

func source(opts *Options) string {
	if opts.FSName == "" {
		return "epochfs"
	}
	return opts.FSName
}

// mountByHelper runs fusermount3, which sends the descriptor over a socket.
func mountByHelper(dir string, opts *Options) (int, error) {
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	options := fmt.Sprintf("ro,nosuid,nodev,default_permissions,max_read=%d,subtype=epochfs,fsname=%s%s",
		maxRequest, escape.Replace(source(opts)), dataOf(opts))
	if opts.NoExec {
		options += ",noexec"
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	err = runHelper([]*os.File{theirs}, "-o", options, "--", dir)
	theirs.Close()
	if err != nil {
		return -1, err
	}
	return receiveFD(pair[0])
}

// receiveFD receives the one descriptor queued in the socket.
func receiveFD(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("%s: receive descriptor: %w", fuseHelper, err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", fuseHelper)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%s sent no descriptor", fuseHelper)
	}
	return fds[0], nil
}

// runHelper runs fusermount3; files become its descriptors from 3 on. The
// returned error has the helper's message. EBUSY is recognized by the
// message, because the helper has one exit code for all failures.
func runHelper(files []*os.File, args ...string) error {
	bin, err := helperPath()
	if err != nil {
		return err
	}
	var words bytes.Buffer
	cmd := exec.Command(bin, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "_FUSE_COMMFD=3"}
	cmd.Dir = "/" // the helper changes directory itself, and this process's may be on a mount
	cmd.ExtraFiles = files
	cmd.Stderr = &words
	err = cmd.Run()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(words.String())
	if strings.Contains(strings.ToLower(text), unix.EBUSY.Error()) {
		return fmt.Errorf("%s: %w", text, unix.EBUSY)
	}
	return fmt.Errorf("%s: %w", text, err)
}

func helperPath() (string, error) {
	bin, err := exec.LookPath(fuseHelper)
	for _, dir := range []string{"/usr/bin", "/bin"} { // PATH may be empty
		if err != nil {
			bin, err = exec.LookPath(filepath.Join(dir, fuseHelper))
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w: users other than root need %s (package fuse3): %w", ErrNoFUSE, fuseHelper, err)
	}
	return bin, nil
}

// mountPoint returns dir absolute and free of symlinks, as the kernel lists
// it, and checks that dir is a directory.
func mountPoint(dir string) (string, error) {
	dir, err := Canonical(dir)
	if err != nil {
		return "", err
	}
	info, err := os.Lstat(dir)
	if errors.Is(err, unix.ENOTCONN) {
		return dir, nil // a dead mount: its type cannot be determined, and another mount can cover it
	}
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", &fs.PathError{Op: "mount", Path: dir, Err: unix.ENOTDIR}
	}
	return dir, nil
}
