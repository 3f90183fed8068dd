package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// Bounds of a walk through a guest's directories: the guest decides how many
// there are, and several can share blocks of its disk.
const (
	mostListed    = 1 << 25   // names in all
	mostHeld      = 512 << 20 // bytes of a directory's entries, which are held to be sorted
	mostPending   = 1 << 20   // directories still to be read
	entryOverhead = 512       // bytes of an entry without its texts, at least the size of inside.File
)

// walkLimits count what a walk has visited.
type walkLimits struct{ listed int }

// errTooMuch is the error about a file system that no honest guest has.
func errTooMuch(what string) error {
	return fmt.Errorf("%w: too many %s", vfs.ErrDamaged, what)
}

// read returns a directory's entries, sorted by name; on error, those read
// before it.
func (l *walkLimits) read(t *guestTree, dir uint64, stat bool) (all []inside.File, err error) {
	held := 0
	err = t.List(dir, stat, func(f inside.File) error {
		l.listed++
		held += entryOverhead + len(f.Name) + len(f.Target) + len(f.Broken)
		if l.listed > mostListed || held > mostHeld {
			return errTooMuch("names")
		}
		all = append(all, f)
		return nil
	})
	slices.SortFunc(all, func(a, b inside.File) int { return cmp.Compare(a.Name, b.Name) })
	return all, err
}

// pending returns an error if more than mostPending directories are still to
// be read.
func (l *walkLimits) pending(n int) error {
	if n > mostPending {
		return errTooMuch("directories")
	}
	return nil
}
