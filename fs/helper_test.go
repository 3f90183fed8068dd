package fs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary runs itself as the process that uses a mount: the one
// that serves it must not.
const helperEnv = "EPOCHFS_FS_TEST_HELPER"

var helpers = map[string]func(args []string) error{
	"sha": helpSha, "mmap": helpMmap, "odirect": helpODirect, "seek": helpSeek,
	"seekat": helpSeekAt, "hold": helpHold, "writes": helpWrites, "stat": helpStat,
	"xattr": helpXattr, "many": helpMany, "dir": helpDir, "serve": helpServe,
	"nofuse": helpNoFUSE, "faults": helpFaults, "readat": helpReadAt,
	"signalled": helpSignalled, "umount": helpUmount, "drain": helpDrain,
	"cross": helpCross, "handle": helpHandle, "byhandle": helpByHandle,
	"touch": helpTouch, "drop": helpDrop, "sendfile": helpSendfile, "splice": helpSplice,
	"populate": helpPopulate, "uring": helpUring, "uringdirect": helpUringDirect,
}

func runTestHelper(args []string) int {
	if err := helpers[args[0]](args[1:]); err != nil {
		fmt.Println("error:", errnoName(err))
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func errnoName(err error) string {
	if err == nil {
		return "none"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// helpWrites tries to change things in every way and prints what came of
// it.
func helpWrites(args []string) error {
	dir, file := args[0], filepath.Join(args[0], args[1])
	open := func(flags int) func() error {
		return func() error {
			fd, err := unix.Open(file, flags, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, op := range []struct {
		name string
		do   func() error
	}{
		{"open for write", open(unix.O_WRONLY)},
		{"open for both", open(unix.O_RDWR)},
		{"open and truncate", open(unix.O_RDONLY | unix.O_TRUNC)},
		{"create", func() error { _, err := unix.Open(in("x"), unix.O_CREAT|unix.O_WRONLY, 0o600); return err }},
		{"tmpfile", func() error { _, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY, 0o600); return err }},
		{"unlink", func() error { return unix.Unlink(file) }},
		{"rename", func() error { return unix.Rename(file, in("x")) }},
		{"link", func() error { return unix.Link(file, in("x")) }},
		{"symlink", func() error { return unix.Symlink("a", in("x")) }},
		{"mkdir", func() error { return unix.Mkdir(in("x"), 0o700) }},
		{"rmdir", func() error { return unix.Rmdir(in("x")) }},
		{"mknod", func() error { return unix.Mknod(in("x"), unix.S_IFIFO|0o600, 0) }},
		{"truncate", func() error { return unix.Truncate(file, 0) }},
		{"chmod", func() error { return unix.Chmod(file, 0o777) }},
		{"chmod directory", func() error { return unix.Chmod(dir, 0o777) }},
		{"chown", func() error { return unix.Chown(file, 1, 1) }},
		{"utimes", func() error { return unix.Utimes(file, make([]unix.Timeval, 2)) }},
		{"setxattr", func() error { return unix.Setxattr(file, "user.x", []byte("1"), 0) }},
		{"removexattr", func() error { return unix.Removexattr(file, "user.epochfs.data") }},
	} {
		fmt.Printf("%s=%s\n", op.name, errnoName(op.do()))
	}
	return nil
}

func helpStat(args []string) error {
	var st unix.Stat_t
	if err := unix.Stat(args[0], &st); err != nil {
		return err
	}
	fmt.Printf("ino=%d mode=%o size=%d blocks=%d uid=%d gid=%d mtime=%d.%09d nlink=%d\n",
		st.Ino, st.Mode, st.Size, st.Blocks, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
	return nil
}

// helpXattr prints the names and values of a file's attributes, and what
// happens to buffers that are too small.
func helpXattr(args []string) error {
	path := args[0]
	size, err := unix.Listxattr(path, nil)
	if err != nil {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Listxattr(path, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Getxattr(path, name, nil)
		if err != nil {
			return err
		}
		v := make([]byte, n)
		if _, err := unix.Getxattr(path, name, v); err != nil {
			return err
		}
		_, short := unix.Getxattr(path, name, make([]byte, n-1))
		fmt.Printf("%s=%s short=%s\n", name, v, errnoName(short))
	}
	if size > 1 {
		_, err = unix.Listxattr(path, make([]byte, 1))
		fmt.Printf("list short=%s\n", errnoName(err))
	}
	_, err = unix.Getxattr(path, "user.absent", nil)
	fmt.Printf("absent=%s\n", errnoName(err))
	return nil
}

// helpCross opens and closes a file on four threads, on three of them with
// O_DIRECT, so and so often or for so long, and prints how opens failed.
func helpCross(args []string) error {
	all, _ := strconv.Atoi(args[1])
	length, _ := time.ParseDuration(args[2])
	end := time.Now().Add(length)
	const threads = 4
	var opened atomic.Int64
	var mu sync.Mutex
	failed := map[string]int{}
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() {
			flags := unix.O_RDONLY
			if i > 0 {
				flags |= unix.O_DIRECT
			}
			for n := 0; n < all/threads && time.Now().Before(end); n++ {
				opened.Add(1)
				fd, err := unix.Open(args[0], flags, 0)
				if err != nil {
					mu.Lock()
					failed[errnoName(err)]++
					mu.Unlock()
					continue
				}
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	fmt.Printf("failed %v of %d\n", failed, opened.Load())
	return nil
}

// helpDir reads a directory in small steps, and goes back once.
func helpDir(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	for pass := range 2 {
		if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
			return err
		}
		buf := make([]byte, 300)
		for {
			n, err := unix.Getdents(fd, buf)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			for b := buf[:n]; len(b) > 0; {
				d := (*unix.Dirent)(unsafe.Pointer(&b[0]))
				name, _, _ := bytes.Cut(b[19:d.Reclen], []byte{0})
				fmt.Println(pass, d.Ino, d.Off, d.Type, string(name))
				b = b[d.Reclen:]
			}
		}
	}
	return nil
}

// helpServe serves a mount from this process until it is killed, or until
// its standard input ends.
func helpServe(args []string) error {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	backing, err := os.Open(os.Args[0])
	if err != nil {
		return err
	}
	st, err := backing.Stat()
	if err != nil {
		return err
	}
	disk := &fileContent{file: backing}
	disk.ready.Store(true)
	m, err := Mount(args[0], []File{textFile("a", "hello"), fileOf("disk", st.Size(), disk)}, Options{UID: uid, GID: gid})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	err = m.Unmount()
	for until := time.Now().Add(time.Minute); errors.Is(err, unix.EBUSY) && time.Now().Before(until); {
		time.Sleep(5 * time.Millisecond)
		err = m.Unmount()
	}
	if err != nil {
		return err
	}
	m.Wait()
	return nil
}

// helpNoFUSE mounts where there is no /dev/fuse, no fusermount3, or a
// /dev/fuse with a mode that keeps other users out.
func helpNoFUSE(args []string) error {
	hide := args[1]
	if err := unix.Mount("tmpfs", hide, "tmpfs", 0, ""); err != nil {
		return err
	}
	if len(args) > 3 {
		if err := unix.Mknod(fuseDevice, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229))); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		if err := unix.Mount("tmpfs", args[2], "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := syscall.Setuid(65534); err != nil {
			return err
		}
	}
	_, err := Mount(args[0], []File{textFile("a", "hello")}, Options{})
	fmt.Println(errors.Is(err, ErrNoFUSE))
	return nil
}

// helpSignalled reads with O_DIRECT while its thread gets signals that do
// not end it.
func helpSignalled(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	signalMyself()
	_, err = unix.Read(fd, b)
	fmt.Println(errnoName(err))
	return nil
}

// signalMyself sends the calling thread a signal every 2 ms.
func signalMyself() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	runtime.LockOSThread()
	pid, tid := os.Getpid(), unix.Gettid()
	go func() {
		for range time.Tick(2 * time.Millisecond) {
			_ = unix.Tgkill(pid, tid, unix.SIGUSR1)
		}
	}()
}

// defaultAction makes a signal end the process at once, as in a program
// that handles none. Go's runtime handles them all.
func defaultAction(sig unix.Signal) error {
	var action [32]byte // struct sigaction, SIG_DFL
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// helpUmount unmounts as another process would, and prints the outcome.
func helpUmount(args []string) error {
	err := Unmount(args[0], len(args) > 1)
	fmt.Println(err == nil, errors.Is(err, unix.EBUSY))
	return nil
}

// child is a helper that runs.
type child struct {
	*exec.Cmd
	out   *bufio.Reader
	stdin io.WriteCloser
}

func helperCmd(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector would let each of them sleep a second at its end.
	cmd.Env = append(os.Environ(), helperEnv+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Dir = "/"
	return cmd
}

// start runs a helper and waits for its line "ready".
func start(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{Cmd: cmd}
	out, err := cmd.StdoutPipe()
	check(t, err)
	c.stdin, err = cmd.StdinPipe()
	check(t, err)
	c.out = bufio.NewReader(out)
	check(t, cmd.Start())
	t.Cleanup(func() { c.stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
	if line, err := c.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%v: %q, %v", cmd.Args, line, err)
	}
	return c
}

// finish ends the helper's standard input and waits for it.
func (c *child) finish(t *testing.T) {
	t.Helper()
	c.stdin.Close()
	rest, _ := io.ReadAll(c.out)
	if err := c.Wait(); err != nil {
		t.Fatalf("%v: %v: %s", c.Args, err, rest)
	}
}

// help runs a helper to its end and returns what it printed.
func help(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helperCmd(args...).Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return string(out)
}

// helpAs is help as user and group 65534.
func helpAs(t *testing.T, args ...string) string {
	t.Helper()
	cmd := asNobody(helperCmd(args...))
	out, _ := cmd.Output()
	return string(out)
}

func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", cmd.Args, err, out)
	}
	return string(out)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok, for a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("never:", what)
		}
	}
}
