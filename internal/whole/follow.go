package whole

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mostLinks bounds the symbolic links in one path, as the kernel does.
const mostLinks = 40

// Follow returns the path of the file that path names: path itself, or, if
// path is a symbolic link, the last link's target, which need not exist. It
// does not follow a link in /proc, such as the target of /dev/stdout: such a
// link stands for an open file, whatever its text.
func Follow(path string) (string, error) {
	asked := path
	for range mostLinks {
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			return path, nil // the caller's use of the path will return the error
		}
		// Cleaning the directory as text would be wrong: it may be a link
		// too.
		dir, _ := filepath.Split(path)
		if dir, err = filepath.EvalSymlinks(dir + "."); err != nil {
			return "", err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.PROC_SUPER_MAGIC {
			return path, nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(target) {
			target = dir + "/" + target
		}
		path = target
	}
	return "", &fs.PathError{Op: "follow", Path: asked, Err: unix.ELOOP}
}

// follow is Follow for a path beside which a file is created: the directory
// in its result contains no links, so cleaning it as text is right.
func follow(path string) (string, error) {
	target, err := Follow(path)
	if err != nil || target == path {
		return target, err
	}
	dir, base := filepath.Split(target)
	if dir, err = filepath.EvalSymlinks(dir + "."); err != nil {
		return "", err
	}
	return filepath.Join(dir, base), nil
}
