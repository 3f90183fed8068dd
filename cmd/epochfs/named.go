package main

import (
	"slices"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

// named is the mount that a user has named by a directory: the mountpoint, a
// symbolic link to it, "." in it, or a bind mount of it.
type named struct {
	dir    string   // as in the kernel's table of mounts
	device string   // "" if no epochfs is mounted there
	dirs   []string // all directories where it is mounted
}

// lookUp finds the mount on a directory. It sends no request to the mount,
// which may not answer.
func lookUp(name string) (named, error) {
	dir, err := fs.Canonical(name)
	if err != nil {
		return named{}, notThere(name, err)
	}
	n := named{dir: dir}
	there, err := mounts.Find(dir)
	if err != nil || there == nil || !there.Ours() {
		return n, err
	}
	n.device = there.Device()
	all, err := mounts.All()
	for _, m := range all {
		if m.Device() == n.device {
			n.dirs = append(n.dirs, m.Dir)
		}
	}
	return n, err
}

// is reports whether n is the mount that was made on dir and has that device
// number, or "" if its process did not report one. If the kernel lists no
// mount, as for another mount namespace, only the directory counts.
func (n named) is(dir, device string) bool {
	if n.device == "" || device == "" {
		return dir == n.dir || slices.Contains(n.dirs, dir)
	}
	return device == n.device
}
