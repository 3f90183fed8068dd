package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"sort"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// guestChange is a guest's file in the JSON output.
type guestChange struct {
	Change string     `json:"change"` // "+", "-", "M", "U" or "T"
	Path   string     `json:"path"`
	Base64 string     `json:"path_base64,omitempty"`
	Before *guestJSON `json:"before,omitempty"`
	After  *guestJSON `json:"after,omitempty"`
}

// treeDiffer compares the file systems of two disks.
type treeDiffer struct {
	*differ
	ctx     context.Context
	guests  [2]*guest
	trees   [2]*guestTree
	disks   [2]inside.Reader
	ranges  []sparse.Segment // where the disks differ; nil unless both are raw
	known   bool             // ranges is set
	escape  bool
	seen    [2]map[uint64]bool // directories
	walk    walkLimits
	damaged bool
	skipped int64 // bytes of files that need not be read
}

// inside compares a path of a disk.
func (d *differ) inside(ctx context.Context) error {
	t := &treeDiffer{differ: d, ctx: ctx, escape: isTerminal(d.diffOptions.out), seen: [2]map[uint64]bool{{}, {}}}
	at, err := t.open()
	for _, g := range t.guests {
		if g != nil {
			defer g.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := t.compareTops(at); err != nil {
		return err
	}
	d.log.Debug("compared contents", "bytes_equal_by_digest", t.skipped)
	if t.damaged {
		return fmt.Errorf("%s: %w", d.file, errDamaged)
	}
	return nil
}

// open opens both sides. What the second disk shares with the first, by
// digests, is read from the first.
func (t *treeDiffer) open() (at [2]*inside.File, err error) {
	var disks [2]shown
	var addresses [2]address
	for i, o := range t.sides {
		if disks[i], addresses[i], err = find(o, t.file); err != nil {
			return at, err
		}
		if addresses[i].path == "" {
			return at, usagef("%s is a path in a disk on one side alone", t.file)
		}
	}
	readers := [2]inside.Reader{}
	for i, o := range t.sides {
		if readers[i], err = newDiskReader(o, disks[i].file); err != nil {
			return at, err
		}
	}
	if t.ranges, err = layout.Differing(t.ctx, disks[0].file, disks[1].file); err != nil {
		return at, fmt.Errorf("%s: %w", t.file, err)
	}
	for i := range disks {
		format, _ := diskFormat(disks[i].file)
		t.known = format == inside.Raw && (i == 0 || t.known)
	}
	readers[1] = twin{readers[1], readers[0], t.ranges}
	t.disks = readers
	for i, o := range t.sides {
		if t.guests[i], err = t.openGuestOn(t.ctx, o, disks[i].file, t.base, readers[i]); err != nil {
			return at, err
		}
		if t.trees[i], err = t.guests[i].openTree(addresses[i]); err != nil {
			return at, err
		}
		t.trees[i].stale(t.globals, t.references[i])
		at[i], err = t.guests[i].resolve(t.trees[i], true)
		if err != nil && (i == 0 || at[0] == nil || !errors.Is(err, errNotFound)) && (i == 1 || !errors.Is(err, errNotFound)) {
			return at, err
		}
	}
	if at[0] == nil && at[1] == nil {
		return at, err
	}
	return at, nil
}

// twin reads shared ranges from another image.
type twin struct {
	inside.Reader
	other  inside.Reader
	ranges []sparse.Segment // in which they differ
}

func (t twin) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return t.read(inside.Reader.ReadAt, ctx, p, off)
}

func (t twin) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return t.read(inside.Reader.ReadOn, ctx, p, off)
}

func (t twin) read(how func(inside.Reader, context.Context, []byte, int64) (int, error), ctx context.Context, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		src, n := t.other, int64(len(p)-done)
		i := firstAfter(t.ranges, at)
		if i < len(t.ranges) {
			if r := t.ranges[i]; r.Offset > at {
				n = min(n, r.Offset-at)
			} else {
				src, n = t.Reader, min(n, r.Offset+r.Length-at)
			}
		}
		got, err := how(src, ctx, p[done:done+int(n)], at)
		done += got
		if got < int(n) {
			return done, err
		}
	}
	return done, nil
}

// firstAfter returns the index of the first range that ends after at.
func firstAfter(ranges []sparse.Segment, at int64) int {
	return sort.Search(len(ranges), func(i int) bool { return ranges[i].Offset+ranges[i].Length > at })
}

// compareTops compares the files at the path.
func (t *treeDiffer) compareTops(at [2]*inside.File) error {
	for i, f := range at {
		if f == nil || vfs.Type(f.Type) != vfs.Directory {
			continue
		}
		if err := t.trees[i].PrepareTree(f.Inode); err != nil && !errors.Is(err, vfs.ErrDamaged) {
			return t.explain(i, err)
		}
	}
	name := path.Clean(t.trees[0].at.path)
	switch {
	case at[0] == nil:
		return t.alone(1, name, at[1])
	case at[1] == nil:
		return t.alone(0, name, at[0])
	case vfs.Type(at[0].Type) != vfs.Directory || vfs.Type(at[1].Type) != vfs.Directory:
		return t.both(name, at[0], at[1], func(string, uint64, uint64) {})
	}
	type pair struct {
		name   string
		inodes [2]uint64
	}
	todo := []pair{{name, [2]uint64{at[0].Inode, at[1].Inode}}}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		var below []pair
		err := t.directories(p.name, p.inodes, func(name string, a, b uint64) {
			below = append(below, pair{name, [2]uint64{a, b}})
		})
		if err != nil {
			return err
		}
		slices.Reverse(below)
		todo = append(todo, below...)
		if err := t.walk.pending(len(todo)); err != nil {
			return err
		}
	}
	return nil
}

// explain adds the side to an error.
func (t *treeDiffer) explain(side int, err error) error {
	return t.guests[side].explain(t.trees[side].at, err)
}

// read returns a directory's entries by name.
func (t *treeDiffer) read(side int, name string, dir uint64) (map[string]*inside.File, error) {
	all := map[string]*inside.File{}
	if t.seen[side][dir] { // directories have one name
		t.damaged = true
		return all, nil
	}
	t.seen[side][dir] = true
	files, err := t.walk.read(t.trees[side], dir, true)
	for i := range files {
		t.damaged = t.damaged || files[i].Broken != ""
		all[files[i].Name] = &files[i]
	}
	if errors.Is(err, vfs.ErrDamaged) {
		t.damaged = true
		t.note("%s: %s: %v", t.sides[side].Reference, name, err)
		return all, nil
	}
	if err != nil {
		return nil, t.explain(side, err)
	}
	return all, nil
}

// directories compares two directories. It passes subdirectories of both to
// below.
func (t *treeDiffer) directories(dir string, inodes [2]uint64, below func(name string, a, b uint64)) error {
	var sides [2]map[string]*inside.File
	for i := range sides {
		var err error
		if sides[i], err = t.read(i, dir, inodes[i]); err != nil {
			return err
		}
	}
	names := maps.Clone(sides[0])
	maps.Copy(names, sides[1])
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := sides[0][name], sides[1][name]
		full := path.Join(dir, name)
		var err error
		switch {
		case a == nil:
			err = t.alone(1, full, b)
		case b == nil:
			err = t.alone(0, full, a)
		default:
			err = t.both(full, a, b, below)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// alone prints a file that exists on one side only, with everything below
// it.
func (t *treeDiffer) alone(side int, name string, f *inside.File) error {
	type dir struct {
		name string
		f    *inside.File
	}
	todo := []dir{{name, f}}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c := guestChange{Change: "+", Path: d.name}
		j := newGuestJSON(d.name, d.f)
		if side == 0 {
			c.Change, c.Before = "-", &j
		} else {
			c.After = &j
		}
		if err := t.change(c, d.f); err != nil {
			return err
		}
		if vfs.Type(d.f.Type) != vfs.Directory {
			continue
		}
		all, err := t.read(side, d.name, d.f.Inode)
		if err != nil {
			return err
		}
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(all))) {
			todo = append(todo, dir{path.Join(d.name, n), all[n]})
		}
		if err := t.walk.pending(len(todo)); err != nil {
			return err
		}
	}
	return nil
}

// both compares two files of one name.
func (t *treeDiffer) both(name string, a, b *inside.File, below func(name string, a, b uint64)) error {
	change, err := t.compare(a, b)
	if err != nil {
		return err
	}
	if change != "" {
		before, after := newGuestJSON(name, a), newGuestJSON(name, b)
		if err := t.change(guestChange{Change: change, Path: name, Before: &before, After: &after}, b); err != nil {
			return err
		}
	}
	aDir, bDir := vfs.Type(a.Type) == vfs.Directory, vfs.Type(b.Type) == vfs.Directory
	switch {
	case aDir && bDir:
		below(name, a.Inode, b.Inode)
	case aDir:
		return t.onlyBelow(0, name, a)
	case bDir:
		return t.onlyBelow(1, name, b)
	}
	return nil
}

// onlyBelow prints the contents of a directory that is something else on the
// other side.
func (t *treeDiffer) onlyBelow(side int, name string, f *inside.File) error {
	all, err := t.read(side, name, f.Inode)
	if err != nil {
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(all)) {
		if err := t.alone(side, path.Join(name, n), all[n]); err != nil {
			return err
		}
	}
	return nil
}

// change prints a difference.
func (t *treeDiffer) change(c guestChange, f *inside.File) error {
	t.found = true
	if t.json {
		c.Base64 = notText(c.Path)
		return printLine(t.out, c)
	}
	slash := ""
	if vfs.Type(f.Type) == vfs.Directory && c.Path != "/" {
		slash = "/"
	}
	_, err := fmt.Fprintf(t.out, "%s  %s%s\n", c.Change, nameText(c.Path, t.escape), slash)
	return err
}
