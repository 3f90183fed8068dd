package main

import (
	"errors"
	"path"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// copyWalk copies one tree of a guest.
type copyWalk struct {
	*copier
	tree  *guestTree
	links map[uint64]string // first names of files with several, by inode
	seen  map[uint64]bool   // directories
	walk  walkLimits
	below bool // the current file is in a directory: the others are copied without it
}

// pending is a directory whose entries are to be copied.
type pending struct {
	name  string // in the copy; "" for its top
	inode uint64
}

// run copies a path under its own name, or the contents of the root.
func (w *copyWalk) run(at *inside.File) error {
	name := path.Base(path.Clean(w.tree.at.path))
	if name == "/" {
		name = ""
	}
	if vfs.Type(at.Type) != vfs.Directory {
		return w.one(name, at)
	}
	if err := w.tree.PrepareTree(at.Inode); err != nil && !errors.Is(err, vfs.ErrDamaged) {
		return err
	}
	if name != "" {
		if err := w.to.dir(name, w.ruled(at)); err != nil {
			return err
		}
	}
	todo := []pending{{name, at.Inode}}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		below, err := w.directory(d)
		if err != nil {
			return err
		}
		todo = append(todo, below...)
		if err := w.walk.pending(len(todo)); err != nil {
			return err
		}
	}
	return nil
}

// directory copies a directory's entries, and returns the subdirectories.
func (w *copyWalk) directory(d pending) (below []pending, err error) {
	if w.seen[d.inode] { // directories have one name
		w.left.damaged++
		return nil, nil
	}
	w.seen[d.inode] = true
	all, err := w.read(d)
	if err != nil {
		return nil, err
	}
	for i := range all {
		f := &all[i]
		name := path.Join(d.name, f.Name)
		switch {
		case !f.Stated || f.Broken != "":
			w.left.damaged++
		case vfs.Type(f.Type) == vfs.Directory:
			if err := w.to.dir(name, w.ruled(f)); err != nil {
				return nil, err
			}
			below = append(below, pending{name, f.Inode})
		default:
			if err := w.one(name, f); err != nil {
				return nil, err
			}
		}
	}
	return below, nil
}

func (w *copyWalk) read(d pending) ([]inside.File, error) {
	all, err := w.walk.read(w.tree, d.inode, true)
	w.below = true
	if errors.Is(err, vfs.ErrDamaged) {
		w.left.damaged++
		w.note("%s: %v", d.name, err)
		err = nil
	}
	return all, err
}

// one copies an entry that is no directory.
func (w *copyWalk) one(name string, f *inside.File) error {
	kind := vfs.Type(f.Type)
	switch kind {
	case vfs.Symlink:
		if f.Target == "" { // no system has links to nothing
			w.left.damaged++
			return nil
		}
		if !w.allow.links && leadsOut(name, f.Target) {
			w.left.links++
			return nil
		}
		return w.to.symlink(name, f)
	case vfs.Socket:
		w.left.sockets++
		return nil
	case vfs.CharDevice, vfs.BlockDevice, vfs.FIFO:
		if !w.allow.devices {
			w.left.devices++
			return nil
		}
		return w.to.device(name, w.ruled(f))
	case vfs.Regular:
		return w.regular(name, f)
	}
	w.left.damaged++
	return nil
}

func (w *copyWalk) regular(name string, f *inside.File) error {
	if first, ok := w.links[f.Inode]; ok {
		return w.to.hardlink(name, first)
	}
	err := w.to.file(name, w.ruled(f), w.counted(func(visit func(off int64, p []byte) error) error {
		return w.tree.Contents(f, 0, f.Size, visit)
	}))
	var broken errBrokenTar
	switch {
	case errors.As(err, &broken):
		return err
	case errors.Is(err, vfs.ErrMetacopy) && w.below:
		w.left.metacopy++
		return nil
	case errors.Is(err, vfs.ErrDamaged) && w.below:
		w.left.damaged++
		return nil
	case err != nil:
		return err
	}
	if f.Links > 1 {
		w.links[f.Inode] = name
	}
	return nil
}

// ruled returns f with its mode in the copy.
func (w *copyWalk) ruled(f *inside.File) *inside.File {
	if f.Mode&0o7000 == 0 || w.allow.setuid {
		return f
	}
	w.left.setuid++
	plain := *f
	plain.Mode &= 0o777
	return &plain
}
