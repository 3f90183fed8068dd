package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// leaveOthers unmounts in a new mount namespace what other tests have mounted:
// a mount ends when it is unmounted in all of them.
const leaveOthers = "umount --all --lazy --types fuse.epochfs || true"

// boot runs a systemd of the test's own, with process, mount and cgroup
// namespaces of its own and no unit but ours. Of the machine's files it can
// write to the site's directory only.
const boot = `set -e
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --kill-child --pid --fork --mount --mount-proc --cgroup sh -c '
set -e
` + leaveOthers + `
mount --bind "$SITE" "$SITE"
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec env -i PATH="$PATH" container=other SYSTEMD_UNIT_PATH="$SITE/units" SYSTEMD_GENERATOR_PATH="$SITE/units" \
	"$SYSTEMD" --system --unit=basic.target --log-target=console --show-status=no'
`

// realSystemd is one that runs.
type realSystemd struct {
	site *site
	pid  string // as we see it
	log  bytes.Buffer
}

func (s *site) bootSystemd() *realSystemd {
	t := s.t
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root only")
	}
	binary := ""
	for _, name := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if unix.Access(name, unix.X_OK) == nil {
			binary = name
		}
	}
	groups := "/sys/fs/cgroup"
	if _, err := os.Stat(groups + "/cgroup.procs"); err != nil {
		groups += "/unified"
	}
	groups += fmt.Sprint("/epochfs-", t.Name(), "-", os.Getpid())
	if err := os.Mkdir(groups, 0o700); err != nil || binary == "" {
		t.Skipf("no systemd (%q) or no cgroups of version 2 (%v)", binary, err)
	}
	t.Cleanup(func() {
		if !poll(func() bool { return removeGroups(groups) == nil }) {
			t.Errorf("%s cannot be removed", groups)
		}
	})
	d := &realSystemd{site: s}
	cmd := exec.Command("sh", "-c", boot)
	cmd.Env = append(s.env, "CGROUP="+groups, "SITE="+s.dir, "SYSTEMD="+binary)
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	must(t, cmd.Start())
	t.Cleanup(func() {
		killed(t, cmd)
		if t.Failed() {
			t.Logf("systemd: %s", d.log.String())
		}
	})
	eventually(t, "systemd", func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		d.pid = strings.TrimSpace(string(children))
		if d.pid == "" {
			return false
		}
		code, _, _ := s.try("nsenter", d.enter("systemctl", "is-active", "basic.target")...)
		return code == 0
	})
	return d
}

// removeGroups removes a tree of control groups, empty ones.
func removeGroups(dir string) error {
	below, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
	for _, name := range below {
		_ = removeGroups(filepath.Dir(name))
	}
	return unix.Rmdir(dir)
}

// enter are nsenter's arguments for a command beside systemd.
func (d *realSystemd) enter(args ...string) []string {
	return append([]string{"-t", d.pid, "-m", "-p", "-C"}, args...)
}

func (d *realSystemd) run(args ...string) string {
	d.site.t.Helper()
	return strings.TrimSpace(d.site.run("nsenter", d.enter(args...)...))
}

// show is a property of the service.
func (d *realSystemd) show(property string) string {
	d.site.t.Helper()
	return d.run("systemctl", "show", "-p", property, "--value", service)
}

// service is an instance of the unit that is installed.
const service = "epochfs@web"

// installUnit has the next systemd know the unit, with changes: pairs of old
// and new text, of which each old one is there. It returns the unit's binary.
func (s *site) installUnit(ref string, changes ...string) (binary string) {
	t := s.t
	t.Helper()
	unit, err := os.ReadFile("../../packaging/epochfs@.service")
	must(t, err)
	program, err := exec.LookPath("epochfs")
	must(t, err)
	binary = filepath.Join(s.dir, "epochfs")
	s.run("cp", program, binary)
	changes = append(changes, "/usr/bin/epochfs", binary, "/etc/epochfs", s.dir, "[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(unit), changes[i]) {
			t.Fatalf("the unit has no %q", changes[i])
		}
	}
	must(t, os.Mkdir(filepath.Join(s.dir, "units"), 0o700))
	for name, text := range map[string]string{
		"units/epochfs@.service": strings.NewReplacer(changes...).Replace(string(unit)),
		"units/basic.target":     "[Unit]\nDefaultDependencies=no\n",
		"web.conf": fmt.Sprintf("REF=%s\nDIR=%s\nOPTIONS=--prefetch all\nEPOCHFS_CACHE_DIR=%[3]s/cache\nEPOCHFS_RUNTIME_DIR=%[3]s/run\nGORACE=atexit_sleep_ms=0\n",
			ref, s.mnt, s.dir),
	} {
		must(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	return binary
}

// TestSystemd has a systemd run the unit that is installed.
func TestSystemd(t *testing.T) {
	tier.Long(t, "boots systemd")
	t.Parallel()
	s := newSite(t)
	installed := s.installUnit(s.ref)
	d := s.bootSystemd()
	d.run("systemctl", "start", service)
	mnt := s.mnt
	s.mnt = "/proc/" + d.pid + "/root" + mnt
	readers := s.readAlways()
	main := func() string { return d.show("MainPID") }
	first := main()

	d.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", service)
	eventually(t, "another process", func() bool { pid := main(); return pid != first && pid != "0" })
	readers.goOn()

	second := main()
	install := func(binary string) {
		s.run("cp", binary, installed+".new")
		must(t, os.Rename(installed+".new", installed))
	}
	install(s.build("two"))
	d.run("systemctl", "restart", service)
	readers.goOn()
	if pid := main(); pid == second {
		t.Errorf("restart left process %s", pid)
	}
	if text := d.run(installed, "status", mnt); !strings.Contains(text, "(version two)") || !strings.Contains(text, "kept by process 1\n") {
		t.Errorf("status: %s", text)
	}

	// epochfs restart tries first.
	third := main()
	if code, _, stderr := s.try("nsenter", d.enter(s.build("other-memory"), "restart", mnt)...); code != exitFailed || !strings.Contains(stderr, "memory has version 1, not 2") {
		t.Errorf("restart of a binary that cannot take over: exit code %d, %q", code, stderr)
	}
	readers.goOn()
	if pid := main(); pid != third {
		t.Errorf("a restart that was refused left process %s, not %s", pid, third)
	}
	if text := d.run(installed, "restart"); !strings.Contains(text, "kept by 1") {
		t.Errorf("restart: %q", text)
	}
	readers.goOn()
	if pid := main(); pid == third || pid == "0" {
		t.Errorf("restart left process %s", pid)
	}

	// One that cannot take over is no end of the mount: the one before can.
	install(s.build("other-memory"))
	if code, _, _ := s.try("nsenter", d.enter("systemctl", "restart", service)...); code == 0 {
		t.Error("restart with a binary that cannot take over: exit code 0")
	}
	eventually(t, "a word of why", func() bool {
		return strings.Contains(d.show("StatusText"), "memory has version 1, not 2")
	})
	install(s.build("two"))
	readers.goOn()

	readers.stop()
	d.run("systemctl", "stop", service)
	for property, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "NFileDescriptorStore": "0"} {
		if got := d.show(property); got != want {
			t.Errorf("after stop: %s is %s", property, got)
		}
	}
	if names, err := os.ReadDir(s.mnt); err != nil || len(names) > 0 {
		t.Errorf("after stop: %v, %v", names, err)
	}
}
