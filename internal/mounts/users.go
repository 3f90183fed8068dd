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
func (m *Mount) Users() []User { return UsersOf([]*Mount{m})[0] }

// UsersOf returns the users of each mount, as Users does, and looks at each
// process once.
func UsersOf(all []*Mount) [][]User {
	users := make([][]User, len(all))
	device := map[string][]int{}
	for i, m := range all {
		users[i] = append(m.below(), m.loops()...)
		dev := fmt.Sprintf("%02x:%02x", m.Major, m.Minor)
		device[dev] = append(device[dev], i)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		used := usedBy(dir, all)
		mapped(filepath.Join(dir, "maps"), all, device, used)
		if len(used) == 0 {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
		for i, what := range used {
			users[i] = append(users[i], User{PID: pid, Command: strings.TrimSpace(string(comm)), What: what})
		}
	}
	return users
}

// usedBy describes how the process with the /proc directory proc uses mounts,
// by their index. It does not look at mappings.
func usedBy(proc string, all []*Mount) map[int]string {
	used := map[int]string{}
	look := func(link string, what func(m *Mount, target string) string) {
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		for i, m := range all {
			if used[i] == "" && m.holds(target) {
				used[i] = what(m, target)
			}
		}
	}
	for _, link := range []struct{ name, what string }{
		{"cwd", "has its working directory there"},
		{"root", "has its root directory there"},
		{"exe", "runs a program from there"},
	} {
		look(filepath.Join(proc, link.name), func(*Mount, string) string { return link.what })
	}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	for _, fd := range fds {
		look(filepath.Join(proc, "fd", fd.Name()), func(m *Mount, target string) string { return "has " + m.relative(target) + " open" })
	}
	return used
}

// mapped adds to used what a table of mappings has of the devices of mounts. A
// mapping is a use after its file was closed: a VM's memory is one.
func mapped(maps string, all []*Mount, device map[string][]int, used map[int]string) {
	f, err := os.Open(maps)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path
		fields := strings.SplitN(lines.Text(), " ", 6)
		if len(fields) != 6 {
			continue
		}
		for _, i := range device[fields[3]] {
			if used[i] == "" {
				used[i] = "has " + all[i].relative(strings.TrimSpace(fields[5])) + " mapped"
			}
		}
	}
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
