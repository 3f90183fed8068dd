// Package whole creates files and directories atomically: a name always
// stands for the complete new contents, safely on disk, or for the previous
// ones.
//
// A killed process leaves an unnamed file, which the kernel removes. On file
// systems without unnamed files, and for directories, it leaves an entry
// .NAME.epochfs-RANDOM beside the target. A process locks the entries that
// it works on. The next process that creates an entry of the same name
// removes those that are not locked.
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

// tries bounds how many temporary names are tried.
const tries = 100

// place is a directory and a prefix for temporary names.
type place struct{ dir, prefix string }

// placeOf returns the place beside path, after removing what dead processes
// left there.
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

// name returns a new temporary name.
func (p place) name() string {
	return filepath.Join(p.dir, fmt.Sprintf("%s%08x", p.prefix, rand.Uint32()))
}

// names reports whether name may have returned file.
func (p place) names(file string) bool {
	random, ok := strings.CutPrefix(file, p.prefix)
	n, err := strconv.ParseUint(random, 16, 32)
	return ok && err == nil && random == fmt.Sprintf("%08x", n)
}

// sweep removes unlocked temporary entries. It ignores errors, because
// leftovers do no harm.
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

// own locks a newly created entry. It returns false if another process's
// sweep has removed the entry first.
func own(f *os.File, name string) (bool, error) {
	if err := tryLock(f); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	} // without locks, sweep cannot remove it either
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
