package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// edit is a change to one file of the source.
type edit struct{ file, old, new string }

// building is held while a version is built.
var building sync.Mutex

// build makes the program of that version, from source that is edited,
// once for all tests.
func (s *site) build(version string, edits ...edit) string {
	s.t.Helper()
	building.Lock()
	defer building.Unlock()
	self, err := exec.LookPath("epochfs")
	must(s.t, err)
	binary := self + "-" + version
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for i, e := range edits {
		name, err := filepath.Abs(filepath.Join("../..", e.file))
		must(s.t, err)
		text, err := os.ReadFile(name)
		must(s.t, err)
		if strings.Count(string(text), e.old) != 1 {
			s.t.Fatalf("%s has not one %q", e.file, e.old)
		}
		to := filepath.Join(s.dir, fmt.Sprintf("%s-%d.go", version, i))
		must(s.t, os.WriteFile(to, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o600))
		overlay.Replace[name] = to
	}
	text, err := json.Marshal(overlay)
	must(s.t, err)
	list := filepath.Join(s.dir, version+".json")
	must(s.t, os.WriteFile(list, text, 0o600))
	cmd := exec.CommandContext(s.t.Context(), "go", "build", "-buildvcs=false", "-overlay", list, "-ldflags=-s -w -X main.version="+version, "-o", binary, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// otherMemory makes a binary with another layout of a mount's memory.
var otherMemory = edit{"fs/memory.go", "memoryVersion = 1\n", "memoryVersion = 2\n"}

// fewerCapabilities makes a binary that negotiates as those did that knew
// nothing of an optional capability.
var fewerCapabilities = edit{"fs/mount.go", "const optional = fuse.CAP_EXPORT_SUPPORT ", "const optional = 0 "}

// A binary that cannot take over is told from one that can before anything
// is done to the mount.
func TestRestartWithOtherBinaries(t *testing.T) {
	tier.Long(t, "builds other versions, and mounts")
	t.Parallel()
	s := newSite(t)
	s.run("epochfs", "mount", "--quiet", "--prefetch", "all", s.ref, s.mnt)
	readers := s.readAlways()
	before := s.status()
	unchanged := func(what string) {
		t.Helper()
		readers.goOn()
		if now := s.status(); now.PID != before.PID || now.KeeperPID != before.KeeperPID {
			t.Fatalf("%s: process %d, kept by %d; it was %d, %d", what, now.PID, now.KeeperPID, before.PID, before.KeeperPID)
		}
	}
	for version, c := range map[string]struct {
		says string
		edit edit
	}{
		"other-memory":      {"memory has version 1, not 2", otherMemory},
		"other-cache":       {"cannot use the cached file", edit{"cache/internal/disk/state.go", "stateVersion = 1\n", "stateVersion = 2\n"}},
		"other-negotiation": {"negotiates otherwise", edit{"fs/mount.go", "maxBackground = 128\n", "maxBackground = 64\n"}},
		"older":             {"negotiates otherwise", fewerCapabilities},
	} {
		code, out, stderr := s.try(s.build(version, c.edit), "restart", s.mnt)
		if code != exitFailed || out != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "is still served by its old process: ") || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: exit code %d, %q, %q", version, code, out, stderr)
		}
		unchanged(version)
	}
	text := filepath.Join(s.dir, "text")
	must(t, os.WriteFile(text, []byte("no program"), 0o600))
	for _, binary := range []string{"/bin/true", text} {
		if answer := askKeeper(t, filepath.Join(s.dir, "run", fmt.Sprint(before.KeeperPID, ".keeper")), binary); !strings.HasPrefix(answer, "STATUS=") {
			t.Errorf("%s: %q", binary, answer)
		}
		unchanged(binary)
	}

	// What was refused has spoiled nothing: the next process has it all.
	must(t, unix.Kill(before.PID, unix.SIGKILL))
	readers.goOn()
	if now := s.status(); now.PID == before.PID || now.Network.Requests != 0 {
		t.Errorf("after a kill: process %d, %d requests", now.PID, now.Network.Requests)
	}
	for _, f := range s.status().Files {
		if f.Local != f.Data {
			t.Errorf("%s: %d of %d local", f.Name, f.Local, f.Data)
		}
	}
	readers.stop()
	s.run("epochfs", "umount", s.mnt)
}

// askKeeper asks a keeper to let a binary take over, and returns what it
// answers.
func askKeeper(t *testing.T, socket, binary string) string {
	t.Helper()
	f, err := os.Open(binary)
	must(t, err)
	defer f.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
	must(t, unix.Connect(fd, &unix.SockaddrUnix{Name: socket}))
	must(t, unix.Sendmsg(fd, []byte("EPOCHFS_RESTART=1\n"), unix.UnixRights(int(f.Fd())), nil, 0))
	answer := make([]byte, 4096)
	n, err := unix.Read(fd, answer)
	must(t, err)
	return string(answer[:n])
}

// Another build of the program takes over all mounts, also one that was made
// with fewer capabilities.
func TestUpgrade(t *testing.T) {
	tier.Long(t, "builds other versions, and mounts")
	t.Parallel()
	s := newSite(t)
	second := filepath.Join(s.dir, "second")
	must(t, os.Mkdir(second, 0o700))
	t.Cleanup(func() { _ = unix.Unmount(second, unix.MNT_DETACH) })
	s.run("epochfs", "mount", "--quiet", "--prefetch", "all", s.ref, s.mnt)
	s.run(s.build("older", fewerCapabilities), "mount", "--quiet", "--prefetch", "none", s.ref, second)
	readers := s.readAlways()
	before := s.status()
	binary := s.build("two")
	began := time.Now()
	out := s.run(binary, "restart")
	t.Logf("%v: %s", time.Since(began), out)
	if strings.Count(out, ": served by process ") != 2 {
		t.Errorf("restart: %q", out)
	}
	readers.goOn()
	now := s.status()
	if now.Program != "two" || now.PID == before.PID || now.KeeperPID != before.KeeperPID || !now.Since.Equal(before.Since) || now.Network.Requests != 0 {
		t.Errorf("before: %+v\nafter: %+v", before, now)
	}
	if text := s.run("epochfs", "status", second); !strings.Contains(text, "(version two)") {
		t.Errorf("status: %s", text)
	}
	// And one that is killed is followed by the same build.
	must(t, unix.Kill(now.PID, unix.SIGKILL))
	readers.goOn()
	if next := s.status(); next.Program != "two" || next.PID == now.PID {
		t.Errorf("after a kill: process %d, version %s", next.PID, next.Program)
	}
	readers.stop()
	s.run("epochfs", "umount", s.mnt)
	s.run("epochfs", "umount", second)
}
