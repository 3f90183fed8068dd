package mounts

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// User is a process, device or mount that keeps a mount busy.
type User struct {
	PID     int    // 0 for a loop device or a mount below
	Command string // name of the process or device
	What    string // how it uses the mount
}

// String returns the user as one line. It does not escape unprintable
// characters.
func (u User) String() string {
	if u.PID == 0 {
		return u.Command + " " + u.What
	}
	return fmt.Sprintf("process %d (%s) %s", u.PID, u.Command, u.What)
}

// Users returns the users of the mount that are visible to this user:
// processes, loop devices and mounts below. It calls no file system, so it
// cannot hang on one.
func (m *Mount) Users() []User {
	users := m.below()
	users = append(users, m.loops()...)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if what := m.usedBy(dir); what != "" {
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			users = append(users, User{PID: pid, Command: strings.TrimSpace(string(comm)), What: what})
		}
	}
	return users
}

// usedBy describes how the process with the /proc directory proc uses the
// mount. It returns "" if the process does not.
func (m *Mount) usedBy(proc string) string {
	for _, link := range []struct{ name, what string }{
		{"cwd", "has its working directory there"},
		{"root", "has its root directory there"},
		{"exe", "runs a program from there"},
	} {
		if target, err := os.Readlink(filepath.Join(proc, link.name)); err == nil && m.holds(target) {
			return link.what
		}
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "fd", "*"))
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && m.holds(target) {
			return "has " + m.relative(target) + " open"
		}
	}
	return m.mapped(filepath.Join(proc, "maps"))
}

// mapped searches a table of mappings for the mount's device.
func (m *Mount) mapped(maps string) string {
	f, err := os.Open(maps)
	if err != nil {
		return ""
	}
	defer f.Close()
	dev := fmt.Sprintf("%02x:%02x", m.Major, m.Minor)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) == 6 && fields[3] == dev {
			return "has " + m.relative(strings.TrimSpace(fields[5])) + " mapped"
		}
	}
	return ""
}

// loops returns the loop devices backed by files of the mount.
func (m *Mount) loops() []User {
	var users []User
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		target, err := os.ReadFile(file)
		if path := strings.TrimSuffix(string(target), "\n"); err == nil && m.holds(path) {
			device := filepath.Base(filepath.Dir(filepath.Dir(file)))
			users = append(users, User{Command: "/dev/" + device, What: "is a loop device over " + m.relative(path)})
		}
	}
	return users
}

// below returns the mounts inside the mount.
func (m *Mount) below() []User {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.Dir))
	if err != nil {
		return nil
	}
	var users []User
	for _, i := range all {
		if i.Mountpoint != m.Dir {
			users = append(users, User{Command: i.Source, What: "is mounted on " + i.Mountpoint})
		}
	}
	return users
}

func (m *Mount) holds(path string) bool {
	return path == m.Dir || strings.HasPrefix(path, m.Dir+"/")
}

func (m *Mount) relative(path string) string {
	if path == m.Dir {
		return "the directory"
	}
	return strings.TrimPrefix(path, m.Dir+"/")
}
