package reader

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
)

const (
	maxLinks = 40   // symbolic links in one path, as in Linux
	maxSteps = 4096 // names in one path, including those of links
)

// resolve sends the file at a path. Symbolic links are resolved within the
// file system, as in the guest.
func (s *server) resolve(fsys system, d *wire.Decoder) error {
	path, follow := d.Text(wire.MaxPath), d.Bool()
	if !d.Ok() {
		return fs.ErrInvalid
	}
	inode, real, err := walk(fsys.FS, path, follow)
	if err != nil {
		return err
	}
	f := wire.File{Name: real, Inode: inode}
	if err := s.stat(fsys, &f, true); err != nil {
		return err
	}
	return s.item(func(e *wire.Encoder) { e.File(&f) })
}

// step is a directory of the path so far, and its name.
type step struct {
	inode uint64
	name  string
}

// walk returns the inode at path, and the path without links.
func walk(fsys guestfs.FS, path string, follow bool) (uint64, string, error) {
	way := []step{{fsys.Root(), ""}}
	rest := split(path)
	links := 0
	for steps := 0; len(rest) > 0; steps++ {
		if steps > maxSteps {
			return 0, "", fmt.Errorf("%s: too many names: %w", path, guestfs.ErrDamaged)
		}
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			way = way[:max(1, len(way)-1)]
			continue
		}
		dir := way[len(way)-1]
		inode, err := fsys.Lookup(dir.inode, name)
		if err != nil {
			return 0, "", atStep(append(way, step{name: name}), err)
		}
		info, err := fsys.Stat(inode)
		if err != nil {
			return 0, "", atStep(append(way, step{name: name}), err)
		}
		if info.Type != guestfs.Symlink || len(rest) == 0 && !follow {
			way = append(way, step{inode, name})
			continue
		}
		if links++; links > maxLinks {
			return 0, "", fmt.Errorf("%s: too many symbolic links: %w", path, guestfs.ErrDamaged)
		}
		target, err := fsys.Readlink(inode)
		if err != nil {
			return 0, "", err
		}
		if strings.HasPrefix(target, "/") {
			way = way[:1]
		}
		rest = append(split(target), rest...)
		if len(rest) > maxSteps {
			return 0, "", fmt.Errorf("%s: too many names: %w", path, guestfs.ErrDamaged)
		}
	}
	return way[len(way)-1].inode, pathOf(way), nil
}

// atStep adds to err how far the path led.
func atStep(way []step, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return missing("there is no " + pathOf(way))
	}
	return fmt.Errorf("%s: %w", pathOf(way), err)
}

// missing is an fs.ErrNotExist with a text of its own.
type missing string

func (e missing) Error() string        { return string(e) }
func (e missing) Is(target error) bool { return target == fs.ErrNotExist }

// split returns a path's names.
func split(path string) (names []string) {
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

func pathOf(way []step) string {
	if len(way) == 1 {
		return "/"
	}
	var b strings.Builder
	for _, s := range way[1:] {
		b.WriteByte('/')
		b.WriteString(s.name)
	}
	return b.String()
}
