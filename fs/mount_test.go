package fs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadOnly(t *testing.T) {
	m := mounted(t, []File{textFile("f", "hello")}, Options{})
	writes := func(how string) {
		t.Helper()
		out := help(t, "writes", m.Dir(), "f")
		if n := strings.Count(out, "\n"); n != 19 {
			t.Errorf("%s: %d attempts: %s", how, n, out)
		}
		for line := range strings.Lines(out) {
			// What is not there cannot be removed; the rest is EROFS.
			if !strings.HasSuffix(line, "=EROFS\n") && !(how == "writable" && line == "rmdir=ENOENT\n") {
				t.Errorf("%s: %s", how, line)
			}
		}
	}
	writes("read-only")
	if os.Geteuid() == 0 {
		// The worker refuses where the kernel does not.
		run(t, "mount", "-i", "-o", "remount,rw", m.Dir())
		writes("writable")
	}
	if got := help(t, "sha", filepath.Join(m.Dir(), "f")); got != shaLine([]byte("hello")) {
		t.Error("the file has changed")
	}
}

// TestKernelSettings looks at what the kernel was told about the mount.
func TestKernelSettings(t *testing.T) {
	needRoot(t)
	m := mounted(t, []File{textFile("f", "hello")}, Options{ReadAhead: 512 << 10})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	check(t, err)
	var line string
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, " "+m.Dir()+" ") {
			line = l
		}
	}
	for _, want := range []string{"nosuid", "nodev", "default_permissions", fmt.Sprint("max_read=", maxRequest)} {
		if !strings.Contains(line, want) {
			t.Errorf("no %s in %q", want, line)
		}
	}
	value := func(path string) string {
		text, err := os.ReadFile(path)
		check(t, err)
		return strings.TrimSpace(string(text))
	}
	if got := value("/sys/class/bdi/" + m.dev + "/read_ahead_kb"); got != "512" {
		t.Errorf("%s KiB of readahead", got)
	}
	control := t.TempDir() // not mounted everywhere
	check(t, unix.Mount("fusectl", control, "fusectl", 0, ""))
	defer func() { check(t, unix.Unmount(control, 0)) }()
	for name, want := range map[string]int{"max_background": maxBackground, "congestion_threshold": maxBackground * 3 / 4} {
		if got := value(filepath.Join(control, fmt.Sprint(m.Connection()), name)); got != fmt.Sprint(want) {
			t.Errorf("%s is %s, not %d", name, got, want)
		}
	}
}

// What the options change in what the kernel and the helper are told.
func TestMountData(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		opts Options
		want string
	}{
		{Options{}, ""},
		{Options{AllowOther: true}, ",allow_other"},
		{Options{Contexts: []string{`context="a:b:c:s0:c1,c2"`, "rootcontext=d"}}, `,context="a:b:c:s0:c1,c2",rootcontext=d`},
	} {
		if got := dataOf(&c.opts); got != c.want {
			t.Errorf("%+v: %q", c.opts, got)
		}
	}
	m := mounted(t, []File{textFile("f", "#!/bin/true")}, Options{NoExec: true})
	var st unix.Statfs_t
	check(t, unix.Statfs(m.Dir(), &st))
	if want := int64(unix.ST_NOEXEC | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_RDONLY); st.Flags&want != want {
		t.Errorf("flags %x", st.Flags)
	}
}

func TestOtherUsers(t *testing.T) {
	needRoot(t)
	files := []File{textFile("open", "1"), textFile("secret", "2")}
	files[1].Mode = 0o400
	private := mounted(t, files, Options{})
	for _, path := range []string{"", "open", "secret", "absent"} {
		if got := helpAs(t, "stat", filepath.Join(private.Dir(), path)); got != "error: EACCES\n" {
			t.Errorf("without allow_other, stat %q: %q", path, got)
		}
	}
	if got := helpAs(t, "sha", filepath.Join(private.Dir(), "open")); got != "error: EACCES\n" {
		t.Errorf("without allow_other: %q", got)
	}
	shared := mounted(t, files, Options{AllowOther: true})
	if got := helpAs(t, "stat", shared.Dir()); !strings.HasPrefix(got, "ino=1 mode=40555 ") {
		t.Errorf("with allow_other: %q", got)
	}
	if got := helpAs(t, "sha", filepath.Join(shared.Dir(), "open")); got != shaLine([]byte("1")) {
		t.Errorf("with allow_other: %q", got)
	}
	if got := helpAs(t, "sha", filepath.Join(shared.Dir(), "secret")); got != "error: EACCES\n" {
		t.Errorf("with allow_other, a file of mode 0400: %q", got)
	}
}

const inNamespace = "EPOCHFS_FS_TEST_NAMESPACE"

// openDevice gives this mount namespace a /dev/fuse that all users may
// open, as most machines have it.
func openDevice(t *testing.T) {
	t.Helper()
	dev := t.TempDir()
	check(t, unix.Mount("tmpfs", dev, "tmpfs", 0, ""))
	node := filepath.Join(dev, "fuse")
	check(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
	check(t, unix.Chmod(node, 0o666))
	check(t, unix.Mount(node, fuseDevice, "", unix.MS_BIND, ""))
	t.Cleanup(func() {
		check(t, unix.Unmount(fuseDevice, 0))
		check(t, unix.Unmount(dev, 0))
	})
}

// A user mounts with the setuid helper, without passthrough, and unmounts.
func TestUnprivileged(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	if _, err := helperPath(); err != nil {
		t.Skip(err)
	}
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	openDevice(t)
	dir := emptyDir(t)
	check(t, os.Chown(dir, 65534, 65534))
	server := start(t, asNobody(helperCmd("serve", dir)))
	if got := helpAs(t, "sha", filepath.Join(dir, "a")); got != shaLine([]byte("hello")) {
		t.Errorf("got %q", got)
	}
	if got := helpAs(t, "stat", dir); !strings.HasPrefix(got, "ino=1 mode=40500 size=4096 blocks=0 uid=65534 gid=65534 ") {
		t.Errorf("got %q", got)
	}
	self, err := os.ReadFile("/proc/self/exe")
	check(t, err)
	for _, how := range []string{"sha", "mmap", "odirect"} { // the file that is ready for passthrough
		if got := helpAs(t, how, filepath.Join(dir, "disk")); got != shaLine(self) {
			t.Errorf("%s: got %q", how, got)
		}
	}
	if got := helpAs(t, "writes", dir, "a"); strings.Count(got, "=EROFS\n") != 19 {
		t.Errorf("writes: %s", got)
	}
	user := start(t, asNobody(helperCmd("hold", filepath.Join(dir, "a"), "plain")))
	if got := helpAs(t, "umount", dir); got != "false true\n" {
		t.Errorf("unmount of a busy mount: %q", got)
	}
	user.finish(t)
	server.finish(t)

	// And cleans up after a server that was killed.
	server = start(t, asNobody(helperCmd("serve", dir)))
	check(t, server.Process.Kill())
	_ = server.Wait()
	if got := helpAs(t, "umount", dir, "lazy"); got != "true false\n" {
		t.Errorf("unmount of a dead mount: %q", got)
	}
}

func TestUnmountBusy(t *testing.T) {
	m := mounted(t, []File{textFile("f", "hello")}, Options{})
	user := start(t, helperCmd("hold", filepath.Join(m.Dir(), "f"), "mmap"))
	if err := m.Unmount(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("a busy mount: %v", err)
	}
	select {
	case <-m.Done():
		t.Error("it has ended")
	default:
	}
	user.finish(t)
	eventually(t, "an unmount", func() bool { return m.Unmount() == nil })
	m.Wait()
	check(t, m.Unmount())
	if err := Unmount(m.Dir(), false); !errors.Is(err, unix.EINVAL) {
		t.Errorf("nothing is mounted there: %v", err)
	}
}

// Somebody else's umount ends Wait; a mount on top is left alone.
func TestUnmountByOthers(t *testing.T) {
	needRoot(t)
	m := mounted(t, []File{textFile("f", "hello")}, Options{})
	check(t, unix.Mount("tmpfs", m.Dir(), "tmpfs", 0, ""))
	if err := m.Unmount(); err == nil {
		t.Error("it has unmounted what lay on top")
	}
	run(t, "umount", m.Dir())
	run(t, "umount", m.Dir())
	m.Wait()
}

// What the kernel may remember it does not ask for again: a process that
// has stopped answers no ls, and none is needed.
func TestNobodyAsked(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	dir := emptyDir(t)
	server := start(t, helperCmd("serve", dir))
	look := func() string {
		out, err := exec.Command("timeout", "30", "ls", "-a", dir).Output()
		check(t, err)
		// stat -t would ask for the birth time
		a, err := exec.Command("timeout", "30", "stat", "-c", "%s %a", filepath.Join(dir, "a")).Output()
		check(t, err)
		err = exec.Command("timeout", "30", "ls", filepath.Join(dir, "absent")).Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("ls of a name that is not there: %v", err)
		}
		return string(out) + string(a)
	}
	before := look()
	check(t, server.Process.Signal(unix.SIGSTOP))
	if after := look(); after != before || before != ".\n..\na\ndisk\n5 444\n" {
		t.Errorf("%q became %q", before, after)
	}
	if Stale(dir) {
		t.Error("a stopped server's mount is not stale")
	}
	check(t, server.Process.Signal(unix.SIGCONT))
	server.finish(t)
}

func TestStale(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	dir := emptyDir(t)
	if Stale(dir) || Stale(filepath.Join(dir, "absent")) {
		t.Error("nothing is mounted there")
	}
	for range 2 { // two on top of each other
		server := start(t, helperCmd("serve", dir))
		if Stale(dir) {
			t.Error("it is alive")
		}
		check(t, server.Process.Kill())
		_ = server.Wait()
		if !Stale(dir) {
			t.Error("it is dead")
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(dir, link))
	if !Stale(link) {
		t.Error("it is dead, through a symlink")
	}
	check(t, CleanStale(dir))
	if at, err := mountsAt(dir); err != nil || len(at) != 0 {
		t.Errorf("still mounted: %v, %v", at, err)
	}
	check(t, CleanStale(dir))
	server := start(t, helperCmd("serve", dir))
	check(t, CleanStale(dir)) // not while it lives
	if got := help(t, "sha", filepath.Join(dir, "a")); got != shaLine([]byte("hello")) {
		t.Errorf("got %q", got)
	}
	server.finish(t)
}

func TestNoFUSE(t *testing.T) {
	needRoot(t)
	dir := emptyDir(t)
	check(t, os.Chown(dir, 65534, 65534))
	for name, hide := range map[string][]string{
		"no device": {"/dev"},
		"not ours":  {"/dev", "/opt", "0600"},
		"no helper": {"/mnt", "/usr/bin"},
	} {
		cmd := helperCmd(append([]string{"nofuse", dir}, hide...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "true\n" {
			t.Errorf("%s: %s, %v", name, out, err)
		}
	}
}

// No child of the serving process inherits the connection: it would keep
// a dead mount alive.
func TestConnectionIsNotInherited(t *testing.T) {
	m := mounted(t, []File{textFile("f", "x")}, Options{})
	if out := run(t, "ls", "-l", "/proc/self/fd"); strings.Contains(out, fuseDevice) {
		t.Errorf("%s", out)
	}
	if m.Dir() == "" {
		t.Error("no directory")
	}
}
