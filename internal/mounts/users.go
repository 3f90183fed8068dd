package mounts

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
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
	p := newPlaces(all)
	p.below(users)
	p.loops(users)
	procs := processes()
	used := make([]map[int]string, len(procs))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for n, proc := range procs {
		g.Go(func() error {
			used[n] = p.usedBy(proc)
			p.mapped(filepath.Join(proc, "maps"), used[n])
			return nil
		})
	}
	_ = g.Wait() // no error is returned
	for n, proc := range procs {
		if len(used[n]) == 0 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(proc))
		comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
		for i, what := range used[n] {
			users[i] = append(users[i], User{PID: pid, Command: strings.TrimSpace(string(comm)), What: what})
		}
	}
	return users
}

// processes returns the /proc directories of all processes.
func processes() (dirs []string) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			dirs = append(dirs, "/proc/"+e.Name())
		}
	}
	return dirs
}

// places finds the mounts to which paths and devices belong, by their index: a
// process has some dozens of paths, and there may be hundreds of mounts.
type places struct {
	all    []*Mount
	dir    map[string][]int
	device map[string][]int // in the form of /proc/PID/maps
}

func newPlaces(all []*Mount) *places {
	p := &places{all: all, dir: map[string][]int{}, device: map[string][]int{}}
	for i, m := range all {
		p.dir[m.Dir] = append(p.dir[m.Dir], i)
		dev := fmt.Sprintf("%02x:%02x", m.Major, m.Minor)
		p.device[dev] = append(p.device[dev], i)
	}
	return p
}

// with returns the mounts that an absolute path is in or on.
func (p *places) with(path string) (at []int) {
	for dir := path; ; {
		at = append(at, p.dir[dir]...)
		end := strings.LastIndexByte(dir, '/')
		if end < 0 || dir == "/" {
			return at
		}
		dir = dir[:max(end, 1)]
	}
}

// usedBy describes how the process with the /proc directory proc uses mounts,
// by their index. It does not look at mappings.
func (p *places) usedBy(proc string) map[int]string {
	used := map[int]string{}
	look := func(target, what string) {
		for _, i := range p.with(target) {
			if used[i] == "" {
				used[i] = strings.Replace(what, "%s", p.all[i].relative(target), 1)
			}
		}
	}
	for _, link := range []struct{ name, what string }{
		{"cwd", "has its working directory there"},
		{"root", "has its root directory there"},
		{"exe", "runs a program from there"},
	} {
		if target, err := os.Readlink(filepath.Join(proc, link.name)); err == nil {
			look(target, link.what)
		}
	}
	fds, err := os.Open(filepath.Join(proc, "fd"))
	if err != nil {
		return used
	}
	defer fds.Close()
	names, _ := fds.Readdirnames(-1)
	var target [unix.PathMax]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(fds.Fd()), name, target[:])
		if err == nil && n > 0 && target[0] == '/' { // and no socket or pipe
			look(string(target[:n]), "has %s open")
		}
	}
	return used
}

// mapped adds to used what a table of mappings has of the devices of mounts. A
// mapping is a use after its file was closed: a VM's memory is one.
func (p *places) mapped(maps string, used map[int]string) {
	f, err := os.Open(maps)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path
		rest := lines.Bytes()
		for range 3 {
			_, rest, _ = bytes.Cut(rest, []byte(" "))
		}
		dev, rest, _ := bytes.Cut(rest, []byte(" "))
		at := p.device[string(dev)]
		if len(at) == 0 {
			continue
		}
		_, path, _ := bytes.Cut(rest, []byte(" "))
		for _, i := range at {
			if used[i] == "" {
				used[i] = "has " + p.all[i].relative(string(bytes.TrimSpace(path))) + " mapped"
			}
		}
	}
}

// loops adds the loop devices that are backed by files of mounts.
func (p *places) loops(users [][]User) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range files {
		target, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		path := strings.TrimSuffix(string(target), "\n")
		device := filepath.Base(filepath.Dir(filepath.Dir(file)))
		for _, i := range p.with(path) {
			users[i] = append(users[i], User{Command: "/dev/" + device, What: "is a loop device over " + p.all[i].relative(path)})
		}
	}
}

// below adds the mounts inside mounts.
func (p *places) below(users [][]User) {
	known, err := mountinfo.GetMounts(nil)
	if err != nil {
		return
	}
	for _, k := range known {
		for _, i := range p.with(filepath.Dir(k.Mountpoint)) {
			if k.Mountpoint != p.all[i].Dir {
				users[i] = append(users[i], User{Command: k.Source, What: "is mounted on " + k.Mountpoint})
			}
		}
	}
}

func (m *Mount) relative(path string) string {
	if path == m.Dir {
		return "the directory"
	}
	return strings.TrimPrefix(path, m.Dir+"/")
}
