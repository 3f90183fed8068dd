// Package mounts reads the kernel's mount table, and finds the users of a
// mount.
package mounts

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Type is the file system type of epochfs mounts in the kernel's table.
const Type = "fuse.epochfs"

// Mount is an entry of the mount table.
type Mount struct {
	Dir          string // absolute, without symbolic links
	Source       string // the mount's source; for an epochfs mount the reference
	Type         string // file system type
	Major, Minor int    // device number
	UID          int    // user who made a FUSE mount; 0 if unknown
}

// Ours reports whether epochfs made the mount.
func (m *Mount) Ours() bool { return m.Type == Type }

// Device returns the mount's device number, as "major:minor". Bind mounts of
// the mount have the same number.
func (m *Mount) Device() string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// All returns all epochfs mounts.
func All() ([]*Mount, error) {
	all, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(Type))
	if err != nil {
		return nil, fmt.Errorf("read the table of mounts: %w", err)
	}
	var ours []*Mount
	for _, i := range all {
		ours = append(ours, fromInfo(i))
	}
	return ours, nil
}

// Find returns the topmost mount on dir, an absolute path without symbolic
// links. It returns nil if dir is not a mountpoint.
func Find(dir string) (*Mount, error) {
	all, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != dir, false })
	if err != nil {
		return nil, fmt.Errorf("read the table of mounts: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return fromInfo(all[len(all)-1]), nil
}

// Automounted reports whether dir, a path without symbolic links, lies on
// autofs, so that the kernel has it mounted on demand.
func Automounted(dir string) (bool, error) {
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return false, fmt.Errorf("read the table of mounts: %w", err)
	}
	var on *mountinfo.Info
	for _, i := range all { // a mount on top of another is listed after it
		if on == nil || len(i.Mountpoint) >= len(on.Mountpoint) {
			on = i
		}
	}
	return on != nil && on.FSType == "autofs", nil
}

func fromInfo(i *mountinfo.Info) *Mount {
	m := &Mount{Dir: i.Mountpoint, Source: i.Source, Type: i.FSType, Major: i.Major, Minor: i.Minor}
	for _, option := range strings.Split(i.VFSOptions, ",") {
		if id, ok := strings.CutPrefix(option, "user_id="); ok {
			m.UID, _ = strconv.Atoi(id) // the kernel writes a number
		}
	}
	return m
}
