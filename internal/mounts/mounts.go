// Package mounts asks the kernel about mounts: what is mounted on a
// directory, and who uses it.
package mounts

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Type is the file system type of our mounts in the kernel's table.
const Type = "fuse.epochfs"

// Mount is what is mounted on a directory.
type Mount struct {
	Dir          string // absolute, without symbolic links
	Source       string // what is mounted; for ours the reference
	Type         string // file system type
	Major, Minor int    // device number
	UID          int    // who made a FUSE mount; 0 where that is not told
}

// Ours says whether epochfs made the mount.
func (m *Mount) Ours() bool { return m.Type == Type }

// Device is the mount's device number, as "major:minor". Bind mounts of it have
// the same.
func (m *Mount) Device() string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// All returns all of our mounts.
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
// links; nil when dir is no mountpoint.
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

// Automounted says whether a directory, by a path without symbolic links,
// is one that the kernel has mounted when it is needed: it lies on autofs.
func Automounted(dir string) (bool, error) {
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return false, fmt.Errorf("read the table of mounts: %w", err)
	}
	var on *mountinfo.Info
	for _, i := range all { // what lies on top of something comes after it
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
