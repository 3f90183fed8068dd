package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/test/tier"
)

// A mount is found by whatever names its directory, also when that cannot be
// written in UTF-8, by commands that leave it there and by umount.
func TestNamesOfMounts(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newSite(t)
	odd := filepath.Join(s.dir, "odd\xff\n ")
	must(t, os.Mkdir(odd, 0o700))
	other := filepath.Join(s.dir, "other")
	must(t, os.Mkdir(other, 0o700))
	must(t, os.Symlink("odd\xff\n ", filepath.Join(s.dir, "link")))
	must(t, os.Symlink(filepath.Join(s.dir, "link"), filepath.Join(s.dir, "second")))
	t.Cleanup(func() {
		for _, dir := range []string{odd, other} {
			for unix.Unmount(dir, unix.MNT_DETACH) == nil {
				t.Log("left: ", dir)
			}
		}
	})
	var made mounted
	must(t, json.Unmarshal([]byte(s.run("epochfs", "mount", "--json", s.ref, odd)), &made))
	if string(made.DirBytes) != odd || made.Dir == odd {
		t.Errorf("mounted on %q, %q", made.Dir, made.DirBytes)
	}
	s.run("epochfs", "mount", s.ref, s.mnt) // not to be taken for it
	must(t, unix.Mount(odd, other, "", unix.MS_BIND, ""))
	asked := func(args ...string) control.Mount {
		t.Helper()
		var all control.Status
		must(t, json.Unmarshal([]byte(s.run(args[0], args[1:]...)), &all))
		if len(all.Mounts) != 1 || string(all.Mounts[0].DirBytes) != odd {
			t.Fatalf("%q: %+v", args, all.Mounts)
		}
		return all.Mounts[0]
	}
	names := []string{odd, filepath.Join(s.dir, "link"), filepath.Join(s.dir, "second"), odd + "/.", other, filepath.Join(s.dir, "absent", "..", "link")}
	must(t, os.Mkdir(filepath.Join(s.dir, "absent"), 0o700))
	inside := []string{"sh", "-c", `cd "$0" && exec "$@"`, odd, "epochfs"}
	pid := made.PID
	for _, name := range names {
		if got := asked("epochfs", "status", "--json", name); got.PID != pid {
			t.Errorf("%q: process %d, not %d", name, got.PID, pid)
		}
		var after restarted
		must(t, json.Unmarshal([]byte(s.run("epochfs", "restart", "--json", name)), &after))
		if len(after.Mounts) != 1 || after.Mounts[0].PID == pid || string(after.Mounts[0].DirBytes) != odd {
			t.Fatalf("%q: %+v after process %d", name, after, pid)
		}
		pid = after.Mounts[0].PID
	}
	for _, dot := range []string{".", "../" + filepath.Base(odd)} {
		if got := asked(append(inside, "status", "--json", dot)...); got.PID != pid {
			t.Errorf("%q from inside: process %d, not %d", dot, got.PID, pid)
		}
	}
	if out := s.run("epochfs", "status"); strings.Count(out, s.ref) != 2 || !strings.Contains(out, `odd\xff`) {
		t.Errorf("both mounts, each once: %s", out)
	}
	for _, name := range []string{s.dir, filepath.Join(s.dir, "absent")} {
		for _, command := range []string{"status", "restart", "umount"} {
			if code, _, _ := s.try("epochfs", command, name); code != exitNotFound {
				t.Errorf("%s %s: exit code %d", command, name, code)
			}
		}
	}

	// Where the mount is left by its bind mount alone, that names it.
	s.run("epochfs", "umount", filepath.Join(s.dir, "second"))
	if got := asked("epochfs", "status", "--json", other); got.PID != pid {
		t.Errorf("by the bind mount alone: process %d, not %d", got.PID, pid)
	}
	s.run("epochfs", "restart", other)
	s.run("epochfs", "umount", other)
	s.run("epochfs", "umount", s.mnt)
}

// A mount whose process does not answer is found all the same, by "." too:
// nothing is asked of it, which would take for as long as it is stopped.
func TestNameOfStoppedMount(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newSite(t)
	link := filepath.Join(s.dir, "link")
	must(t, os.Symlink(s.mnt, link))
	var made mounted
	must(t, json.Unmarshal([]byte(s.run("epochfs", "mount", "--json", s.ref, s.mnt)), &made))
	shell := exec.Command("sh", "-c", `cd "$0" && read line && exec epochfs status --json .`, link)
	shell.Env = s.env
	var out strings.Builder
	shell.Stdout = &out
	in, err := shell.StdinPipe()
	must(t, err)
	must(t, shell.Start())
	eventually(t, "the shell is in the mount", func() bool {
		at, _ := os.Readlink("/proc/" + fmt.Sprint(shell.Process.Pid) + "/cwd")
		return at == s.mnt
	})
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	for _, pid := range []int{made.KeeperPID, made.PID} {
		must(t, unix.Kill(pid, unix.SIGSTOP))
	}
	_, err = in.Write([]byte("\n"))
	must(t, err)
	must(t, shell.Wait())
	var all control.Status
	must(t, json.Unmarshal([]byte(out.String()), &all))
	if len(all.Mounts) != 1 || all.Mounts[0].Dir != s.mnt || all.Mounts[0].Trouble == "" {
		t.Errorf("%+v", all.Mounts)
	}
	for _, pid := range []int{made.KeeperPID, made.PID} {
		must(t, unix.Kill(pid, unix.SIGCONT))
	}
	s.run("epochfs", "umount", link)
}
