// Package whole makes files and directories that come into being at once:
// a name stands for all of one, safely on disk, or for what it stood for
// before.
//
// A process that is killed leaves a file without a name, which goes with
// it, or, where the file system has no such files, and of a directory,
// something called .NAME.epochfs-RANDOM beside its target. Who works on
// one has it locked; what nobody has locked is removed by the next who
// makes something of that name.
package whole

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tries bounds how often another name is tried.
const tries = 100

// place is where something is made.
type place struct{ dir, prefix string }

// placeOf is beside path. What is left there of others is removed.
func placeOf(path string) place {
	dir, base := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	const longest = 200 // bytes; names have up to 255
	p := place{dir, "." + base[:min(len(base), longest)] + ".epochfs-"}
	p.sweep()
	return p
}

// name is a new one.
func (p place) name() string {
	return filepath.Join(p.dir, fmt.Sprintf("%s%08x", p.prefix, rand.Uint32()))
}

// names says that a file may have been called so by name.
func (p place) names(file string) bool {
	random, ok := strings.CutPrefix(file, p.prefix)
	n, err := strconv.ParseUint(random, 16, 32)
	return ok && err == nil && random == fmt.Sprintf("%08x", n)
}

// sweep removes what nobody works on. What it cannot remove stays: nobody
// depends on it.
func (p place) sweep() {
	found, err := os.ReadDir(p.dir)
	if err != nil {
		return
	}
	for _, e := range found {
		if !p.names(e.Name()) || !e.IsDir() && !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(p.dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if tryLock(f) == nil {
			_ = os.RemoveAll(path)
		}
		_ = f.Close()
	}
}

func tryLock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// own locks what was just made under a name. It is false where a sweep was
// faster, and the name no longer its own.
func own(f *os.File, name string) (bool, error) {
	if err := tryLock(f); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	} // one without locks is not swept either
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
