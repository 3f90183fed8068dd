package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// Bounds of a walk through a guest's directories: the guest decides how many
// there are, and several of them can be the same blocks of its disk.
const (
	mostListed    = 1 << 25   // names in all
	mostHeld      = 512 << 20 // bytes of a directory's entries, which are held to be sorted
	mostPending   = 1 << 20   // directories that are still to be read
	entryOverhead = 512       // bytes of an entry besides its texts, at least what inside.File takes
)

// walkLimits count what a walk has come across.
type walkLimits struct{ listed int }

// errTooMuch is an error about a file system that no honest guest has.
func errTooMuch(what string) error {
	return fmt.Errorf("%w: more %s than a look takes", vfs.ErrDamaged, what)
}

// read returns a directory's entries, sorted by name; with an error, those
// that came before.
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

// pending refuses more directories than are remembered.
func (l *walkLimits) pending(n int) error {
	if n > mostPending {
		return errTooMuch("directories")
	}
	return nil
}
