package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// TestPlainUser: a user without privileges has all of it, but for what
// the kernel would read by itself.
func TestPlainUser(t *testing.T) {
	tier.Long(t, "mounts as another user")
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("root becomes another user here")
	}
	s := newSite(t)
	binary := s.openTo(65534)
	run := func(args ...string) string { return s.run(binary, args...) }
	status := func() (m struct {
		PID    int    `json:"pid"`
		Keeper int    `json:"keeper_pid"`
		Not    string `json:"not_kept"`
	}) {
		var all struct{ Mounts []json.RawMessage }
		must(t, json.Unmarshal([]byte(run("status", "--json", s.mnt)), &all))
		must(t, json.Unmarshal(all.Mounts[0], &m))
		return m
	}
	run("mount", "--quiet", "--prefetch", "all", s.ref, s.mnt)
	reader := s.startReader()
	first := status()
	if first.Keeper == 0 || first.Not != "" {
		t.Fatalf("kept by %d: %s", first.Keeper, first.Not)
	}
	must(t, unix.Kill(first.PID, unix.SIGKILL))
	reader.goOn()
	run("restart", s.mnt)
	reader.goOn()
	second := status()
	if second.PID == first.PID || second.Keeper != first.Keeper {
		t.Errorf("process %d, kept by %d; before %d, %d", second.PID, second.Keeper, first.PID, first.Keeper)
	}
	must(t, unix.Kill(first.Keeper, unix.SIGKILL))
	eventually(t, "a mount without keeper", func() bool { return status().Keeper == 0 })
	run("restart")
	reader.goOn()
	third := status()
	must(t, unix.Kill(third.PID, unix.SIGKILL))
	reader.goOn()
	if last := status(); last.PID == third.PID || last.Keeper != third.Keeper || last.Keeper == 0 {
		t.Errorf("process %d, kept by %d; before %d, %d", last.PID, last.Keeper, third.PID, third.Keeper)
	}
	text, allowOther := run("doctor"), "note  allow-other "
	if conf, _ := os.ReadFile("/etc/fuse.conf"); strings.Contains("\n"+string(conf), "\nuser_allow_other") {
		allowOther = "ok    allow-other "
	}
	for _, want := range []string{"ok    takeover ", "note  passthrough ", "note  readahead ", "note  memory ", allowOther} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("doctor has no %q: %s", want, text)
		}
	}
	reader.stop()
	run("umount", s.mnt)
}

// openTo makes a user own the site, and has all commands run as that user,
// in a mount namespace where every user can open /dev/fuse. It returns the
// binary that the user can run.
func (s *site) openTo(uid int) (binary string) {
	s.t.Helper()
	program, err := exec.LookPath("epochfs")
	must(s.t, err)
	binary = filepath.Join(s.dir, "epochfs")
	s.run("cp", program, binary)
	must(s.t, os.Chmod(binary, 0o755))
	for _, dir := range []string{s.dir, filepath.Dir(s.dir)} {
		must(s.t, os.Chmod(dir, 0o755))
	}
	s.run("chown", "-R", fmt.Sprint(uid), s.dir)
	ready := filepath.Join(s.dir, "ready")
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		leaveOthers+`; mkdir dev && mount -t tmpfs tmpfs dev && mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse && touch ready && exec sleep 300`)
	holder.Dir = s.dir
	must(s.t, holder.Start())
	s.t.Cleanup(func() { killed(s.t, holder) })
	eventually(s.t, "a namespace", func() bool { _, err := os.Stat(ready); return err == nil })
	s.as = []string{"nsenter", "-t", fmt.Sprint(holder.Process.Pid), "-m", "setpriv", fmt.Sprint("--reuid=", uid), "--regid=65534", "--clear-groups", "--"}
	return binary
}

// outsideReader is a process that reads all of a mount without end and
// compares it with digests.
type outsideReader struct {
	site *site
	cmd  *exec.Cmd
}

func (s *site) startReader() *outsideReader {
	s.t.Helper()
	var sums strings.Builder
	for name, w := range s.expected() {
		fmt.Fprintf(&sums, "%s  %s\n", w.SHA256, filepath.Join(s.mnt, name))
	}
	must(s.t, os.WriteFile(filepath.Join(s.dir, "sums"), []byte(sums.String()), 0o644))
	const script = `cd "$1" || exit; until [ -e stop ]; do sha256sum -c --quiet sums || exit; echo >>rounds; sleep 0.1; done`
	all := append(s.as, "sh", "-c", script, "sh", s.dir)
	r := &outsideReader{s, exec.Command(all[0], all[1:]...)}
	r.cmd.Stderr = os.Stderr
	must(s.t, r.cmd.Start())
	s.t.Cleanup(r.stop)
	r.goOn()
	return r
}

func (r *outsideReader) rounds() int64 {
	info, err := os.Stat(filepath.Join(r.site.dir, "rounds"))
	if err != nil {
		return 0
	}
	return info.Size()
}

// goOn returns when it has read everything from here on.
func (r *outsideReader) goOn() {
	r.site.t.Helper()
	from := r.rounds()
	eventually(r.site.t, "a reader", func() bool { return r.rounds() > from+1 })
}

// stop waits for the reader, who must have found everything right.
func (r *outsideReader) stop() {
	if r.cmd.ProcessState != nil {
		return
	}
	must(r.site.t, os.WriteFile(filepath.Join(r.site.dir, "stop"), nil, 0o644))
	if code := exits(r.site.t, r.cmd); code != 0 {
		r.site.t.Errorf("the reader ended with %d", code)
	}
}

// TestOldKernel has a binary for which no kernel is new enough: a mount
// works, ends with its process, and says so.
func TestOldKernel(t *testing.T) {
	tier.Long(t, "mounts, with a kernel that knows less")
	t.Parallel()
	s := newSite(t)
	binary := s.build("old-kernel")
	s.run(binary, "mount", "--quiet", "--prefetch", "all", s.ref, s.mnt)
	readers := s.readAlways()
	readers.goOn()
	st := s.status()
	if st.KeeperPID != 0 || !strings.Contains(st.NotKept, "Linux 6.9") {
		t.Errorf("kept by %d, %q", st.KeeperPID, st.NotKept)
	}
	if text := s.run("epochfs", "status", s.mnt); !strings.Contains(text, "not kept, it ends with its process: this kernel") {
		t.Errorf("status: %s", text)
	}
	if text := s.run(binary, "doctor"); !strings.Contains(text, "\nnote  takeover ") {
		t.Errorf("doctor: %s", text)
	}
	code, _, stderr := s.try("epochfs", "restart", s.mnt)
	if code != exitFailed || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "Linux 6.9") {
		t.Errorf("restart: exit code %d, %q", code, stderr)
	}
	readers.goOn()
	readers.stop()

	// Killed, it ends, and its keeper; the next mount clears it away.
	must(t, unix.Kill(st.PID, unix.SIGKILL))
	eventually(t, "ENOTCONN", func() bool {
		_, err := os.ReadFile(filepath.Join(s.mnt, "config.json"))
		return errors.Is(err, unix.ENOTCONN)
	})
	s.run(binary, "mount", "--quiet", s.ref, s.mnt)
	s.readAlways().stop()
	s.run(binary, "umount", s.mnt)
	eventually(t, "an empty directory of sockets", func() bool {
		left, err := os.ReadDir(filepath.Join(s.dir, "run"))
		return len(left) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
	})
}
