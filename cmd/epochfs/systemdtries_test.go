package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// restarts is how often the service was started by itself.
func (d *realSystemd) restarts() int {
	d.site.t.Helper()
	n, err := strconv.Atoi(d.show("NRestarts"))
	must(d.site.t, err)
	return n
}

// lateRegistry is an address at which nobody listens until open leads
// from there to where somebody does.
func lateRegistry(t *testing.T, to string) (addr string, open func()) {
	t.Helper()
	// Bound, and so nobody else's, but not listening yet.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	socket := os.NewFile(uintptr(fd), "late registry")
	t.Cleanup(func() { socket.Close() })
	must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := unix.Getsockname(fd)
	must(t, err)
	addr = fmt.Sprint("127.0.0.1:", name.(*unix.SockaddrInet4).Port)
	return addr, func() {
		must(t, unix.Listen(fd, unix.SOMAXCONN))
		l, err := net.FileListener(socket)
		must(t, err)
		var all sync.WaitGroup
		t.Cleanup(all.Wait)
		t.Cleanup(func() { l.Close() })
		all.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				all.Go(func() { connect(c, to) })
			}
		})
	}
}

// connect carries bytes both ways until the one who called hangs up.
func connect(c net.Conn, to string) {
	defer c.Close()
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(c, up) })
	_, _ = io.Copy(up, c)
	up.Close()
	back.Wait()
}

// TestSystemdTries has a systemd run the unit where nothing can be mounted
// yet: it tries for ever, and slowly.
func TestSystemdTries(t *testing.T) {
	tier.Long(t, "boots systemd")
	t.Parallel()
	s := newSite(t)
	host, name, _ := strings.Cut(s.ref, "/")
	late, open := lateRegistry(t, host)
	const pause = 500 * time.Millisecond
	s.installUnit(late+"/"+name+":later", "sleep 5", "sleep 0.5", "StartLimitBurst=150", "StartLimitBurst=10", "StartLimitIntervalSec=10min", "StartLimitIntervalSec=4")
	d := s.bootSystemd()
	start := func() {
		t.Helper()
		if code, _, _ := s.try("nsenter", d.enter("systemctl", "start", service)...); code == 0 {
			t.Error("it starts with nothing to mount")
		}
	}
	start() // without a registry
	eventually(t, "another try", func() bool { return d.restarts() >= 1 })
	open() // one without the tag, which says so at once
	const tries = 6
	began := time.Now()
	from := d.restarts()
	eventually(t, "further tries", func() bool { return d.restarts() >= from+tries })
	if took := time.Since(began); took < (tries-1)*pause {
		t.Errorf("%d tries in %v", tries, took)
	}
	began = time.Now()
	d.run("systemctl", "stop", service)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stop takes %v", took)
	}
	if state := d.show("ActiveState"); state != "inactive" && state != "failed" {
		t.Errorf("after stop it is %s", state)
	}

	start()
	s.run("epochfs", "push", "--quiet", "--input", "../../snapshot/testdata/cocoon-export.tar", s.ref+":later")
	eventually(t, "a mount", func() bool { return d.show("ActiveState") == "active" })
	d.run("cat", filepath.Join(s.mnt, "config.json"))
	d.run("systemctl", "stop", service)
}

// TestSystemdGivesUp has a program that always ends, as after a panic, put
// under a live mount: readers get an error at last, and do not wait for
// ever.
func TestSystemdGivesUp(t *testing.T) {
	tier.Long(t, "boots systemd")
	t.Parallel()
	s := newSite(t)
	// Ten are over in a second, and so might be the first of two lives below.
	installed := s.installUnit(s.ref, "StartLimitBurst=150", "StartLimitBurst=60")
	d := s.bootSystemd()
	d.run("systemctl", "start", service)
	good, err := os.ReadFile(installed)
	must(t, err)
	install := func(binary []byte) {
		must(t, os.WriteFile(installed+".new", binary, 0o700))
		must(t, os.Rename(installed+".new", installed))
	}
	kill := func() { d.run("systemctl", "kill", "-s", "KILL", "--kill-who=main", service) }
	bad := []byte("#!/bin/sh\nexit 2\n")

	install(bad)
	kill()
	eventually(t, "another try", func() bool { return d.restarts() >= 2 })
	install(good)
	d.run("cat", filepath.Join(s.mnt, "config.json"))

	install(bad)
	kill()
	eventually(t, "an end", func() bool { return d.show("ActiveState") == "failed" })
	if _, err := os.ReadDir("/proc/" + d.pid + "/root" + s.mnt); err == nil {
		t.Error("a mount that was given up can be read")
	}
	install(good)
	d.run("systemctl", "reset-failed", service)
	d.run("systemctl", "start", service)
	d.run("cat", filepath.Join(s.mnt, "config.json"))
	d.run("systemctl", "stop", service)
}

// TestSystemdStopsBusy stops the service while somebody uses the mount:
// what is open goes on, and the next start mounts.
func TestSystemdStopsBusy(t *testing.T) {
	tier.Long(t, "boots systemd")
	t.Parallel()
	s := newSite(t)
	s.installUnit(s.ref, "TimeoutStopSec=10", "TimeoutStopSec=3") // two signals that come together are one
	d := s.bootSystemd()
	d.run("systemctl", "start", service)
	name := filepath.Join("/proc", d.pid, "root", s.mnt, "config.json")
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	d.run("systemctl", "stop", service)
	if result := d.show("Result"); result != "timeout" {
		t.Errorf("the result of a busy stop is %s", result)
	}
	if names, err := os.ReadDir(filepath.Dir(name)); err != nil || len(names) > 0 {
		t.Errorf("after a busy stop there are %v, %v", names, err)
	}
	d.run("systemctl", "start", service)
	want, err := os.ReadFile(name)
	must(t, err)
	if got, err := io.ReadAll(f); err != nil || string(got) != string(want) || len(got) == 0 {
		t.Errorf("who had a file open reads %q, %v; in the next mount it is %q", got, err, want)
	}
	must(t, f.Close())
	d.run("systemctl", "stop", service)
}

// automountUnits has the next systemd know a line of fstab, by its own
// generator, and returns the names of its units without their kind.
func (s *site) automountUnits(ref, more string) string {
	t := s.t
	t.Helper()
	generator := "/usr/lib/systemd/system-generators/systemd-fstab-generator"
	if _, err := os.Stat(generator); err != nil {
		t.Skip(err)
	}
	units, table := filepath.Join(s.dir, "units"), filepath.Join(s.dir, "fstab")
	must(t, os.Mkdir(units, 0o700))
	must(t, os.WriteFile(filepath.Join(units, "basic.target"), []byte("[Unit]\nDefaultDependencies=no\n"), 0o600))
	line := fmt.Sprintf("%s %s fuse.epochfs noauto,x-systemd.automount,_netdev,allow_other,cache_dir=%s/cache 0 0\n", ref, s.mnt, s.dir)
	must(t, os.WriteFile(table, []byte(line), 0o600))
	s.run("env", "SYSTEMD_FSTAB="+table, generator, units, units, units)
	name := strings.TrimSpace(s.run("systemd-escape", "-p", s.mnt))
	must(t, os.Mkdir(filepath.Join(units, name+".mount.d"), 0o700))
	must(t, os.WriteFile(filepath.Join(units, name+".mount.d/tries.conf"), []byte(more), 0o600))
	return name
}

// TestSystemdAutomount has a systemd mount by a line of fstab when somebody
// looks, and looks before the registry is there: that fails, and is tried
// again when somebody looks again.
func TestSystemdAutomount(t *testing.T) {
	tier.Long(t, "boots systemd")
	t.Parallel()
	s := newSite(t)
	host, name, _ := strings.Cut(s.ref, "/")
	late, open := lateRegistry(t, host)
	unit := s.automountUnits(late+"/"+name, "[Unit]\nStartLimitIntervalSec=0\n")
	program, err := exec.LookPath("epochfs")
	must(t, err)
	sbin := filepath.Join(s.dir, "sbin")
	must(t, os.Mkdir(sbin, 0o700))
	s.run("cp", program, filepath.Join(sbin, "mount.fuse.epochfs"))
	d := s.bootSystemd()
	d.run("mount", "-t", "overlay", "-o", "lowerdir=/usr/sbin:"+sbin, "overlay", "/usr/sbin") // where mount(8) looks
	d.run("systemctl", "start", unit+".automount")
	file := filepath.Join(s.mnt, "config.json")
	look := func() (code int) {
		t.Helper()
		code, _, _ = s.try("nsenter", d.enter("cat", file)...)
		return code
	}
	if look() == 0 {
		t.Error("it is mounted without a registry")
	}
	open()
	if look() != 0 {
		t.Fatal("it is not mounted when the registry is there")
	}
	d.run("umount", s.mnt)
	if look() != 0 {
		t.Error("it is not mounted again")
	}
	d.run("systemctl", "stop", unit+".automount")
	eventually(t, "an end of all processes", func() bool {
		code, _, _ := s.try("nsenter", d.enter("pgrep", "-x", "epochfs")...)
		return code == 1
	})
}
