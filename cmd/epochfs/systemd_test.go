package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// manager stands in for systemd: it holds the descriptors that a service
// sends to the socket for notifications, and starts it anew with them.
type manager struct {
	site   *site
	socket *net.UnixConn
	room   int // FileDescriptorStoreMax

	mu     sync.Mutex
	store  []stored
	ready  int // how often the service has said so
	beats  int
	status string
}

type stored struct {
	name string
	file *os.File
}

func newManager(s *site, room int) *manager {
	s.t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "notify"), Net: "unixgram"})
	must(s.t, err)
	m := &manager{site: s, socket: conn, room: room}
	var done sync.WaitGroup
	done.Go(m.listen)
	s.t.Cleanup(func() {
		conn.Close()
		done.Wait()
		m.drop("")
	})
	return m
}

func (m *manager) listen() {
	buf, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4*64))
	for {
		n, nOOB, _, _, err := m.socket.ReadMsgUnix(buf, oob)
		if err != nil {
			return // closed
		}
		m.noted(string(buf[:n]), oob[:nOOB])
	}
}

// noted does what systemd does with a message, by sd_notify(3) and
// sd_pid_notify_with_fds(3).
func (m *manager) noted(text string, oob []byte) {
	vars := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		vars[name] = value
	}
	var files []*os.File
	if messages, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range messages {
			fds, _ := unix.ParseUnixRights(&messages[i])
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), vars["FDNAME"]))
			}
		}
	}
	if vars["FDSTOREREMOVE"] == "1" {
		m.drop(vars["FDNAME"])
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range files {
		// Without FDPOLL=0 systemd drops a connection that has ended.
		if vars["FDSTORE"] != "1" || vars["FDPOLL"] != "0" || len(m.store) >= m.room {
			f.Close()
			continue
		}
		m.store = append(m.store, stored{vars["FDNAME"], f})
	}
	if vars["READY"] == "1" {
		m.ready++
	}
	if vars["WATCHDOG"] == "1" {
		m.beats++
	}
	if s := vars["STATUS"]; s != "" {
		m.status = s
	}
}

// drop closes what is stored under a name, all of it under none.
func (m *manager) drop(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var left []stored
	for _, s := range m.store {
		if name != "" && s.name != name {
			left = append(left, s)
			continue
		}
		s.file.Close()
	}
	m.store = left
}

func (m *manager) names() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]int{}
	for _, s := range m.store {
		names[s.name]++
	}
	return names
}

func (m *manager) get(p *int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *p
}

// start runs the service, with what is stored.
func (m *manager) start(binary string) *exec.Cmd {
	m.site.t.Helper()
	// Only the process itself knows its id in time.
	cmd := exec.Command("sh", "-c", `export SYSTEMD_EXEC_PID=$$; test "$LISTEN_FDS" = 0 || export LISTEN_PID=$$; exec "$@"`, "sh",
		binary, "mount", "--foreground", "--quiet", "--prefetch", "all", m.site.ref, m.site.mnt)
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, s := range m.store {
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
		names = append(names, s.name)
	}
	cmd.Env = append(m.site.env, "NOTIFY_SOCKET="+m.socket.LocalAddr().String(), fmt.Sprint("FDSTORE=", m.room),
		fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	must(m.site.t, cmd.Start())
	m.site.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// serve starts the service and waits for it to be ready.
func (m *manager) serve() *exec.Cmd {
	m.site.t.Helper()
	before := m.get(&m.ready)
	cmd := m.start("epochfs")
	eventually(m.site.t, "READY=1", func() bool { return m.get(&m.ready) > before })
	return cmd
}

func killed(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

func TestDescriptorStore(t *testing.T) {
	tier.Long(t, "mounts, with a descriptor store")
	t.Parallel()
	s := newSite(t)
	m := newManager(s, 64)
	cmd := m.serve()
	if n := m.names(); n["fuse"] != 1 || n["memory"] != 1 || n["lock"] == 0 {
		t.Fatalf("it stored %v", n)
	}
	before := m.names()
	readers := s.readAlways()
	for range 3 {
		killed(t, cmd)
		cmd = m.serve()
		readers.goOn()
		st := s.status()
		if st.PID != cmd.Process.Pid || st.KeeperPID != os.Getpid() {
			t.Errorf("process %d, kept by %d; want %d, %d", st.PID, st.KeeperPID, cmd.Process.Pid, os.Getpid())
		}
	}
	if after := m.names(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("stored at first %v, after restarts %v", before, after)
	}
	beats := m.get(&m.beats)
	eventually(t, "WATCHDOG=1", func() bool { return m.get(&m.beats) > beats })

	// Asked to end while it is used, it stays; then it goes, and all with it.
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	readers.goOn()
	readers.stop()
	eventually(t, "an end", func() bool {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		return len(m.names()) == 0
	})
	if code := exits(t, cmd); code != 0 {
		t.Errorf("it ended with %d", code)
	}

	// Unmounted while no process serves: the next one has nothing to do.
	killed(t, m.serve())
	must(t, unix.Unmount(s.mnt, unix.MNT_DETACH))
	cmd = m.start("epochfs")
	if code := exits(t, cmd); code != 0 {
		t.Errorf("after an unmount it ended with %d", code)
	}
	eventually(t, "an empty store", func() bool { return len(m.names()) == 0 })
}

// Under a live mount every failure is of one kind, by which the unit has
// it tried again at once.
func TestTakeoverExitCode(t *testing.T) {
	tier.Long(t, "mounts, with a descriptor store")
	t.Parallel()
	s := newSite(t)
	m := newManager(s, 64)
	killed(t, m.serve())
	cache := filepath.Join(s.dir, "cache")
	must(t, os.Rename(cache, cache+".away"))
	must(t, os.WriteFile(cache, nil, 0o600))
	if code := exits(t, m.start("epochfs")); code != exitFailed {
		t.Errorf("without a cache it ended with %d", code)
	}
	must(t, os.Remove(cache))
	must(t, os.Rename(cache+".away", cache))
	cmd := m.serve()
	s.run("cat", filepath.Join(s.mnt, "config.json"))
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if code := exits(t, cmd); code != 0 {
		t.Errorf("it ended with %d", code)
	}
}

// A store that is too small would lose some of what it is sent.
func TestSmallDescriptorStore(t *testing.T) {
	tier.Long(t, "mounts, with a descriptor store")
	t.Parallel()
	s := newSite(t)
	m := newManager(s, 3)
	cmd := m.serve()
	if n := m.names(); len(n) != 0 {
		t.Errorf("it stored %v", n)
	}
	if st := s.status(); st.KeeperPID != 0 || !strings.Contains(st.NotKept, "FileDescriptorStoreMax") {
		t.Errorf("kept by %d, %q", st.KeeperPID, st.NotKept)
	}
	killed(t, cmd)
	cmd = m.serve() // it mounts anew
	s.run("cat", filepath.Join(s.mnt, "config.json"))
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if code := exits(t, cmd); code != 0 {
		t.Errorf("it ended with %d", code)
	}
}

// A service with a store of its own may mount: that is no service of ours.
func TestMountKeepsOutOfOthersStore(t *testing.T) {
	tier.Long(t, "mounts, with a descriptor store")
	t.Parallel()
	s := newSite(t)
	m := newManager(s, 64)
	clean := s.env
	s.env = append(clean, "NOTIFY_SOCKET="+m.socket.LocalAddr().String(), "FDSTORE=64", fmt.Sprint("SYSTEMD_EXEC_PID=", os.Getpid()))
	s.run("epochfs", "mount", "--quiet", s.ref, s.mnt)
	if st := s.status(); st.KeeperPID == 0 || st.KeeperPID == os.Getpid() {
		t.Errorf("kept by %d", st.KeeperPID)
	}
	if n, ready := m.names(), m.get(&m.ready); len(n) > 0 || ready > 0 {
		t.Errorf("it stored %v, and said %d times that it is ready", n, ready)
	}
	s.run("epochfs", "umount", s.mnt)
}
