package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// setupEnv holds a keeper's setup, and marks a process as a keeper.
	setupEnv = "EPOCHFS_KEEPER_SETUP"
	// namesEnv holds the names of the descriptors that a worker has
	// inherited, from 3 on, separated by colons.
	namesEnv = "EPOCHFS_INHERITED"
	// chosenEnv is set for a worker that is to replace a live one.
	chosenEnv = "EPOCHFS_CHOSEN"
	// timesEnv is for tests: start, hang, give up and spare, as
	// durations separated by commas.
	timesEnv = "EPOCHFS_KEEPER_TIMES"

	linkName  = "link"
	readyName = "ready"

	// leastExe is above all descriptors that a worker inherits. A
	// binary's descriptor below it would be overwritten.
	leastExe = 64
)

// Start configures a keeper.
type Start struct {
	Args    []string // of the workers, the program's name first
	Env     []string // of keeper and workers
	Sockets string   // directory for the keeper's socket; "" for none
	JSON    bool     // write log lines as JSON
	Log     *os.File // the log, also stderr of all workers but the first; nil: stderr
	Ready   *os.File // inherited by the first worker; nil for none

	// SameGroup leaves keeper and first worker in the caller's process
	// group until the mount is ready. While automount mounts a
	// directory, the kernel admits only automount's own process group to
	// it.
	SameGroup bool

	adopt int      // a worker that runs already
	link  *os.File // the socket to it
}

// setup is Start in the form that the keeper reads.
type setup struct {
	Ready   int    `json:"ready,omitempty"`  // descriptor, 0 for none
	Stderr  int    `json:"stderr,omitempty"` // of the first worker
	Sockets string `json:"sockets,omitempty"`
	JSON    bool   `json:"json,omitempty"`
	Adopt   int    `json:"adopt,omitempty"` // process id
	Link    int    `json:"link,omitempty"`
	Group   bool   `json:"group,omitempty"` // SameGroup
}

// Command returns a command that starts a keeper. The keeper ends up in a
// session of its own.
func (s Start) Command() (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = keeperArgs(s.Args)
	cmd.Dir = "/"
	// The caller's other descriptors, such as locks or ends of pipes,
	// must not be held by the mount. Before Linux 5.11 they are.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: !s.SameGroup}
	cmd.Stdout, cmd.Stderr = s.Log, s.Log
	set := setup{Sockets: s.Sockets, JSON: s.JSON, Stderr: 2, Adopt: s.adopt, Group: s.SameGroup}
	inherit := func(f *os.File) int {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		return 2 + len(cmd.ExtraFiles)
	}
	if s.Ready != nil {
		set.Ready = inherit(s.Ready)
	}
	if s.Log == nil {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	} else if s.adopt == 0 {
		set.Stderr = inherit(os.Stderr)
	}
	if s.link != nil {
		set.Link = inherit(s.link)
	}
	var err error
	cmd.Env, err = s.environment(set)
	return cmd, err
}

// Become turns this process into a keeper, in the foreground. It returns
// only if it fails.
func (s Start) Become() error {
	env, err := s.environment(setup{Sockets: s.Sockets, JSON: s.JSON, Stderr: 2})
	if err != nil {
		return err
	}
	return os.NewSyscallError("exec", syscall.Exec("/proc/self/exe", keeperArgs(s.Args), env))
}

// keeperArgs returns the arguments that ps shows.
func keeperArgs(args []string) []string { return slices.Concat(args[:1], []string{"keeper"}, args[1:]) }

func (s Start) environment(set setup) ([]string, error) {
	text, err := json.Marshal(set)
	return slices.Concat(s.Env, oneProcessor(s.Env), []string{setupEnv + "=" + string(text)}), err
}

// Is reports whether this process is to be a keeper.
func Is() bool { return os.Getenv(setupEnv) != "" }

// given is a setup as the keeper uses it.
type given struct {
	setup
	args  []string
	env   []string
	exe   int
	times times
}

// takeSetup reads the setup. It keeps children from inheriting descriptors
// not meant for them.
func takeSetup() (*given, error) {
	g := &given{times: defaultTimes}
	if err := json.Unmarshal([]byte(os.Getenv(setupEnv)), &g.setup); err != nil || len(os.Args) < 2 {
		return nil, fmt.Errorf("%s is not a keeper's setup", setupEnv)
	}
	g.args = slices.Concat(os.Args[:1], os.Args[2:])
	g.env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return slices.ContainsFunc([]string{setupEnv, namesEnv, chosenEnv, notifyEnv}, func(name string) bool {
			return strings.HasPrefix(kv, name+"=")
		})
	})
	g.env = allProcessors(g.env)
	if err := g.times.set(os.Getenv(timesEnv)); err != nil {
		return nil, err
	}
	for _, fd := range []int{g.Ready, g.Stderr, g.Link} {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	exe, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the program: %w", err)
	}
	g.exe, err = high(exe)
	return g, err
}

// high moves a descriptor above those that workers inherit.
func high(fd int) (int, error) {
	defer unix.Close(fd)
	up, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, leastExe)
	return up, os.NewSyscallError("dup", err)
}

func (t *times) set(text string) error {
	if text == "" {
		return nil
	}
	parts := strings.Split(text, ",")
	to := []*time.Duration{&t.start, &t.hang, &t.giveUp, &t.spare}
	if len(parts) != len(to) {
		return errors.New(timesEnv + " has four durations")
	}
	for i, p := range parts {
		d, err := time.ParseDuration(p)
		if err != nil || d <= 0 {
			return errors.New(timesEnv + " has four durations")
		}
		*to[i] = d
	}
	return nil
}

// notifyEnv names systemd's socket if the keeper is a service.
const notifyEnv = "NOTIFY_SOCKET"

// systemdSocket returns the path of systemd's notification socket, or "" if
// systemd did not start this process. A program that systemd started passes
// the same variables on to its children. Before systemd 248 the two cases
// cannot be distinguished.
func systemdSocket() string {
	if pid, ok := os.LookupEnv("SYSTEMD_EXEC_PID"); ok && pid != strconv.Itoa(os.Getpid()) {
		return ""
	}
	return os.Getenv(notifyEnv)
}

// tellSystemd notifies systemd that the service has started.
func tellSystemd() {
	path := systemdSocket()
	if path == "" {
		return
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(socket)
	_ = send(socket, newMessage(varReady, "1"), notifyAddress(path))
}

// notifyAddress returns the socket address of a path as systemd gives it: a
// leading @ means the kernel's abstract name space, not the file system.
func notifyAddress(path string) unix.Sockaddr {
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	return &unix.SockaddrUnix{Name: path}
}
