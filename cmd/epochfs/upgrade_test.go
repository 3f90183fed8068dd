package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// variants are what other builds of the program have otherwise, as edits of its
// source. One build has all of them, and looks at its name for which holds.
var variants = []struct{ file, old, new string }{
	{"cmd/epochfs/version.go", "var version string\n", "var version = variant.Name()\n"},
	// another layout of a mount's memory
	{"fs/memory.go", "\tmemoryVersion = 1\n", `)

var memoryVersion = variant.Of("other-memory", 2, uint32(1))

const (
`},
	// another layout of a cached file's state
	{"cache/internal/disk/state.go", "\tstateVersion = 1\n", `)

var stateVersion = variant.Of("other-cache", 2, uint32(1))

const (
`},
	{"fs/mount.go", "\tmaxBackground = 128\n", `)

var maxBackground = variant.Of("other-negotiation", 64, 128)

const (
`},
	// it negotiates as those did that knew nothing of an optional capability
	{"fs/mount.go", "const optional = fuse.CAP_EXPORT_SUPPORT ", `var optional = variant.Of("older", 0, uint64(fuse.CAP_EXPORT_SUPPORT)) `},
	// no kernel is new enough
	{"fs/takeover.go", "const hasResend = 1 << 39\n", `var hasResend = variant.Of("old-kernel", 1<<62, uint64(1<<39))` + "\n"},
}

// variantName is where the name of a variant goes in the program.
const variantName = "<the name of a variant, and spaces>"

// variantPackage is what the program knows of its name.
const variantPackage = `package variant

import "strings"

var name = "` + variantName + `"

func Name() string { return strings.TrimRight(name, " ") }

func Of[T any](variant string, then, otherwise T) T {
	if Name() == variant {
		return then
	}
	return otherwise
}
`

// otherBuild is the program from source with all variants.
var otherBuild = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "epochfs-variants-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	edited := map[string]string{"internal/variant/variant.go": variantPackage}
	for _, v := range variants {
		text := edited[v.file]
		if text == "" {
			raw, err := os.ReadFile(filepath.Join("../..", v.file))
			if err != nil {
				return nil, err
			}
			text = strings.Replace(string(raw), "import (\n", "import (\n\t\"github.com/cocoonstack/epochfs/internal/variant\"\n", 1)
		}
		if strings.Count(text, v.old) != 1 {
			return nil, fmt.Errorf("%s has not one %q", v.file, v.old)
		}
		edited[v.file] = strings.Replace(text, v.old, v.new, 1)
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for file, text := range edited {
		name, err := filepath.Abs(filepath.Join("../..", file))
		if err != nil {
			return nil, err
		}
		overlay.Replace[name] = filepath.Join(dir, fmt.Sprintf("%d.go", len(overlay.Replace)))
		if err := os.WriteFile(overlay.Replace[name], []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return nil, err
	}
	list, binary := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "epochfs")
	if err := os.WriteFile(list, text, 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-overlay", list, "-ldflags=-s -w", "-o", binary, ".").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(binary)
})

// otherBuilds is held while a variant is written.
var otherBuilds sync.Mutex

// build returns a variant of the program, or one that differs from the others in
// its version alone, made once for all tests.
func (s *site) build(variant string) (binary string) {
	s.t.Helper()
	otherBuilds.Lock()
	defer otherBuilds.Unlock()
	self, err := exec.LookPath("epochfs")
	must(s.t, err)
	binary = self + "-" + variant
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	program, err := otherBuild()
	must(s.t, err)
	if n := bytes.Count(program, []byte(variantName)); n != 1 {
		s.t.Fatalf("the program has %d names", n)
	}
	name := fmt.Appendf(nil, "%-*s", len(variantName), variant)
	// What is forked while the file is open for writing would keep it from being run.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	must(s.t, os.WriteFile(binary, bytes.Replace(program, []byte(variantName), name, 1), 0o700))
	return binary
}

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
	for variant, says := range map[string]string{
		"other-memory":      "memory has version 1, not 2",
		"other-cache":       "cannot use the cached file",
		"other-negotiation": "negotiates otherwise",
		"older":             "negotiates otherwise",
	} {
		code, out, stderr := s.try(s.build(variant), "restart", s.mnt)
		if code != exitFailed || out != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "is still served by its old process: ") || !strings.Contains(stderr, says) {
			t.Errorf("%s: exit code %d, %q, %q", variant, code, out, stderr)
		}
		unchanged(variant)
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
	s.run(s.build("older"), "mount", "--quiet", "--prefetch", "none", s.ref, second)
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
