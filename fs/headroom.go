package fs

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
)

// Pages that a process stores are charged to its memory cgroup. Beyond the
// cgroup's limit they push each other out, and what the process itself needs.

const (
	// headroomStep is how many bytes are stored between two looks at the
	// cgroup.
	headroomStep = 1 << 20
	// headroomShare is the part of a limit that stores leave free: one
	// in so many.
	headroomShare = 16
)

// headroom bounds what is stored by the memory that the process's cgroup has
// left.
type headroom struct {
	groups func() []memoryGroup

	mu   sync.Mutex
	left int64 // that may be stored before the next look
}

// memoryGroup is the state of one memory cgroup, in bytes.
type memoryGroup struct{ limit, used int64 }

// take reports whether n more bytes may be stored.
func (h *headroom) take(n int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.left < n {
		room := int64(1) << 62
		for _, g := range h.groups() {
			room = min(room, g.limit-g.used-g.limit/headroomShare)
		}
		h.left = min(room, max(headroomStep, n))
	}
	if h.left < n {
		h.left = 0
		return false
	}
	h.left -= n
	return true
}

// giveBack returns what was taken and not stored.
func (h *headroom) giveBack(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left += n
}

// ownGroups returns a function that reads the memory cgroups which this
// process is charged to, from its own up to the root, without those that have
// no limit.
func ownGroups() func() []memoryGroup {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return func() []memoryGroup { return nil }
	}
	at, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.FSType != "cgroup2" && (i.FSType != "cgroup" || !slices.Contains(strings.Split(i.VFSOptions, ","), "memory")), false
	})
	if err != nil {
		return func() []memoryGroup { return nil }
	}
	var dirs []groupDir
	for _, i := range at {
		dirs = append(dirs, groupDirs(string(own), i)...)
	}
	return func() (all []memoryGroup) {
		for _, d := range dirs {
			if g, ok := d.read(); ok {
				all = append(all, g)
			}
		}
		return all
	}
}

// groupDir is the directory of a memory cgroup.
type groupDir struct {
	path        string
	limit, used string // names of files
}

// groupDirs returns the directories of a hierarchy that the process whose
// /proc/PID/cgroup is given belongs to, the lowest first.
func groupDirs(own string, i *mountinfo.Info) (all []groupDir) {
	d := groupDir{limit: "memory.max", used: "memory.current"}
	if i.FSType == "cgroup" {
		d = groupDir{limit: "memory.limit_in_bytes", used: "memory.usage_in_bytes"}
	}
	for line := range strings.Lines(own) {
		// hierarchy:controllers:path
		field := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(field) < 3 || (i.FSType == "cgroup2") != (field[1] == "") ||
			i.FSType == "cgroup" && !slices.Contains(strings.Split(field[1], ","), "memory") {
			continue
		}
		below, ok := strings.CutPrefix(field[2], strings.TrimSuffix(i.Root, "/"))
		if !ok { // seen from within a container, whose own group is all that is mounted
			below = "/"
		}
		for at := filepath.Clean("/" + below); ; at = filepath.Dir(at) {
			d.path = filepath.Join(i.Mountpoint, at)
			all = append(all, d)
			if at == "/" {
				return all
			}
		}
	}
	return nil
}

// read returns the group's state; ok is false if it has no limit.
func (d groupDir) read() (g memoryGroup, ok bool) {
	limit, ok := readNumber(filepath.Join(d.path, d.limit))
	if !ok || limit >= 1<<62 { // version 1 writes a number near 2^63 for none
		return g, false
	}
	used, ok := readNumber(filepath.Join(d.path, d.used))
	return memoryGroup{limit: limit, used: used}, ok
}

// readNumber reads a file that has one number.
func readNumber(path string) (int64, bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n')
	n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return n, err == nil
}
