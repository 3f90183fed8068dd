package keeper

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fakeProcess is a process in a /proc of a test.
type fakeProcess struct {
	pid    int
	name   string // "" is epochfs
	killed bool   // all of its threads are in the kernel, to be killed
	alive  bool   // one thread is not
	open   string // connections, with spaces
	own    string // the same, of the last thread's own table
	env    string // that of the last thread
}

// fakeProc makes a /proc of two threads each.
func fakeProc(t *testing.T, all ...fakeProcess) string {
	t.Helper()
	proc := t.TempDir()
	write := func(dir, name, text string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range all {
		dir := filepath.Join(proc, strconv.Itoa(p.pid))
		for i, open := range []string{p.open, strings.TrimSpace(p.open + " " + p.own)} {
			task := filepath.Join(dir, "task", strconv.Itoa(p.pid+i))
			line := stat("epochfs", 'S', 0, 0, 0)
			if p.killed && (i == 0 || !p.alive) {
				line = stat("epochfs", 'D', 0, 0x100, 9)
			}
			if i == 0 {
				write(dir, "stat", line)
				write(dir, "comm", cmp.Or(p.name, "epochfs")+"\n")
			}
			write(task, "stat", line)
			for fd, n := range strings.Fields(open) {
				write(filepath.Join(task, "fdinfo"), strconv.Itoa(fd), "pos:\t0\nfuse_connection:\t"+n+"\n")
				write(filepath.Join(task, "fd"), "other", "")
				if err := os.Symlink("/dev/fuse", filepath.Join(task, "fd", strconv.Itoa(fd))); err != nil {
					t.Fatal(err)
				}
			}
			if i == 1 {
				write(task, "environ", "A=1\x00"+p.env+"\x00B=2\x00")
			}
		}
	}
	return proc
}

// A connection is abandoned if killed processes alone have it open. A keeper
// without a worker, a worker without a keeper, and whoever else holds it do not
// abandon it.
func TestAbandoned(t *testing.T) {
	for name, c := range map[string]struct {
		procs  []fakeProcess
		number string
		user   bool // asks, and not root
		want   []string
	}{
		"nothing hangs":             {procs: []fakeProcess{{pid: 10, open: "7"}}},
		"all were killed":           {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}, {pid: 20}}, want: []string{"7"}},
		"a thread's own table":      {procs: []fakeProcess{{pid: 10, killed: true, own: "7"}}, want: []string{"7"}},
		"a keeper without a worker": {procs: []fakeProcess{{pid: 10, killed: true, own: "7"}, {pid: 20, open: "7"}}},
		"a thread is not killed":    {procs: []fakeProcess{{pid: 10, killed: true, alive: true, open: "7"}}},
		"one of two mounts":         {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}, {pid: 20, killed: true, open: "8"}, {pid: 30, open: "8"}}, want: []string{"7"}},
		"both of two mounts":        {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}, {pid: 20, killed: true, open: "8"}}, want: []string{"7", "8"}},
		"the one in question":       {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}, {pid: 20, killed: true, open: "8"}}, number: "8", want: []string{"8"}},
		"another's":                 {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}}, number: "8"},
		"another file system's":     {procs: []fakeProcess{{pid: 10, name: "sshfs", killed: true, open: "7"}}},
		"another program holds it":  {procs: []fakeProcess{{pid: 10, killed: true, open: "7"}, {pid: 20, name: "systemd", open: "7"}}},
		"systemd's, root sees it":   {procs: []fakeProcess{{pid: 1, open: "7"}, {pid: 10, killed: true, open: "7", env: "SYSTEMD_EXEC_PID=10"}}},
		"let go by systemd":         {procs: []fakeProcess{{pid: 1}, {pid: 10, killed: true, open: "7", env: "SYSTEMD_EXEC_PID=10"}}, want: []string{"7"}},
		"systemd's, not seen":       {procs: []fakeProcess{{pid: 10, killed: true, open: "7", env: "SYSTEMD_EXEC_PID=10"}}, user: true},
		"started from a service":    {procs: []fakeProcess{{pid: 10, killed: true, open: "7", env: "SYSTEMD_EXEC_PID=9"}}, user: true, want: []string{"7"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.Sorted(maps.Keys(abandoned(fakeProc(t, c.procs...), c.number, !c.user)))
			if !slices.Equal(got, c.want) {
				t.Errorf("abandoned: %v, not %v", got, c.want)
			}
		})
	}
}

// What is found abandoned at first, and a moment later is not, was handed on.
func TestAbandonedForAMoment(t *testing.T) {
	looks := []map[string]bool{{"7": true, "8": true}, {"8": true, "9": true}}
	got := lasting(0, func() map[string]bool {
		found := looks[0]
		looks = looks[1:]
		return found
	})
	if !maps.Equal(got, map[string]bool{"8": true}) {
		t.Errorf("abandoned: %v", got)
	}
	if got := lasting(time.Hour, func() map[string]bool { return nil }); len(got) > 0 { // without a wait
		t.Errorf("abandoned: %v", got)
	}
}
