package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// errDamaged is an error about a damaged part of a guest's file system, when
// the rest was shown.
var errDamaged = fmt.Errorf("%w: what could not be read is marked", vfs.ErrDamaged)

// lister prints a guest's directories.
type lister struct {
	*lsOptions
	out     *bufio.Writer
	tree    *guestTree
	escape  bool
	now     time.Time
	walk    walkLimits
	damaged bool
	seen    map[uint64]bool // directories, in a recursive listing
}

// runLsInside lists a path in a disk.
func runLsInside(ctx context.Context, opts lsOptions, o *mounting.Opened, f *layout.File, a address) error {
	d, err := opts.openGuest(ctx, o, f, opts.base)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := d.openTree(a)
	if err != nil {
		return err
	}
	t.stale(opts.globals, "")
	at, err := d.resolve(t, !opts.long)
	if err != nil {
		return err
	}
	l := &lister{lsOptions: &opts, out: bufio.NewWriterSize(opts.out, 64<<10), tree: t, escape: isTerminal(opts.out), now: time.Now(), seen: map[uint64]bool{}}
	err = l.list(at)
	if err = errors.Join(err, l.out.Flush()); err != nil {
		return d.explain(a, err)
	}
	if l.damaged {
		return d.explain(a, errDamaged)
	}
	return nil
}

func (l *lister) list(at *inside.File) error {
	if vfs.Type(at.Type) != vfs.Directory {
		return l.print(path.Dir(at.Name), []inside.File{calledBy(at, l.tree.at.path)})
	}
	if !l.recursive {
		all, err := l.read(at.Inode)
		if err != nil {
			return err
		}
		return l.directory(at.Name, all)
	}
	if err := l.tree.PrepareTree(at.Inode); err != nil && !errors.Is(err, vfs.ErrDamaged) {
		return err
	}
	return l.below(at.Name, at.Inode)
}

// calledBy returns a file under another name.
func calledBy(f *inside.File, name string) inside.File {
	g := *f
	g.Name = name
	return g
}

// below lists a directory and its subdirectories, depth first. The stack is
// on the heap, because the guest decides the depth.
func (l *lister) below(name string, inode uint64) error {
	type dir struct {
		name  string
		inode uint64
	}
	todo := []dir{{name, inode}}
	for first := true; len(todo) > 0; first = false {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if l.seen[d.inode] { // directories have one name
			l.damaged = true
			continue
		}
		l.seen[d.inode] = true
		all, err := l.read(d.inode)
		if errors.Is(err, vfs.ErrDamaged) {
			l.damaged = true
			l.note("%s: %v", d.name, err)
		} else if err != nil {
			return err
		}
		if !l.json {
			if !first {
				fmt.Fprintln(l.out)
			}
			fmt.Fprintf(l.out, "%s:\n", nameText(d.name, l.escape))
		}
		if err := l.directory(d.name, all); err != nil {
			return err
		}
		for _, f := range slices.Backward(all) {
			if vfs.Type(f.Type) == vfs.Directory {
				todo = append(todo, dir{path.Join(d.name, f.Name), f.Inode})
			}
		}
		if err := l.walk.pending(len(todo)); err != nil {
			return err
		}
	}
	return nil
}

// read returns a directory's entries, sorted by name.
func (l *lister) read(dir uint64) ([]inside.File, error) {
	all, err := l.walk.read(l.tree, dir, l.long || l.json || l.tree.at.upper)
	for i := range all {
		l.damaged = l.damaged || all[i].Broken != ""
	}
	return all, err
}

// directory prints a directory's entries.
func (l *lister) directory(dir string, all []inside.File) error {
	if l.long && !l.json {
		var blocks int64
		for i := range all {
			blocks += all[i].Blocks
		}
		fmt.Fprintf(l.out, "total %d\n", (blocks+1)/2)
	}
	return l.print(dir, all)
}

func (l *lister) print(dir string, all []inside.File) error {
	switch {
	case l.json:
		for i := range all {
			if err := printLine(l.out, newGuestJSON(path.Join(dir, all[i].Name), &all[i])); err != nil {
				return err
			}
		}
		return nil
	case l.long:
		return l.printLong(all)
	}
	for i := range all {
		if _, err := fmt.Fprintf(l.out, "%s%s\n", nameText(all[i].Name, l.escape), mark(&all[i])); err != nil {
			return err
		}
	}
	return nil
}

// printLong aligns columns as ls -ln does: numbers to the right, device
// numbers separately.
func (l *lister) printLong(all []inside.File) error {
	const links, uid, gid, size, date, major, minor = 0, 1, 2, 3, 4, 5, 6
	rows := make([][7]string, len(all))
	var width [7]int
	for i := range all {
		f := &all[i]
		if f.Stated {
			rows[i] = [7]string{fmt.Sprint(f.Links), fmt.Sprint(f.UID), fmt.Sprint(f.GID), fmt.Sprint(f.Size), lsTime(f.Modified, l.now)}
		} else {
			rows[i] = [7]string{"?", "?", "?", "?", "?"}
		}
		if isDevice(f) {
			rows[i][size], rows[i][major], rows[i][minor] = "", fmt.Sprint(f.Major), fmt.Sprint(f.Minor)
		}
		for k, cell := range rows[i] {
			width[k] = max(width[k], len(cell))
		}
	}
	if width[minor] > 0 {
		width[size] = max(width[size], width[major]+2+width[minor])
	}
	for i := range all {
		f, r := &all[i], &rows[i]
		mode := guestMode(f)
		if !f.Stated {
			mode = mode[:1] + strings.Repeat("?", 9)
		}
		if isDevice(f) {
			r[size] = fmt.Sprintf("%s, %*s", r[major], width[minor], r[minor])
		}
		_, err := fmt.Fprintf(l.out, "%s %*s %*s %*s %*s %*s %s%s%s\n", mode, width[links], r[links], width[uid], r[uid], width[gid], r[gid],
			width[size], r[size], width[date], r[date], nameText(f.Name, l.escape), l.arrow(f), mark(f))
		if err != nil {
			return err
		}
	}
	return nil
}

func isDevice(f *inside.File) bool {
	t := vfs.Type(f.Type)
	return f.Stated && (t == vfs.CharDevice || t == vfs.BlockDevice)
}

// arrow returns the suffix with a symbolic link's target.
func (l *lister) arrow(f *inside.File) string {
	if vfs.Type(f.Type) != vfs.Symlink {
		return ""
	}
	return " -> " + nameText(f.Target, l.escape)
}
