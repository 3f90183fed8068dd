package whole

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mostLinks is how many symbolic links the kernel follows in one path.
const mostLinks = 40

// Follow returns the path of the file that path names: path itself, or, if
// that is a symbolic link, the last link's target, which need not exist. A
// link in /proc, such as the one that /dev/stdout leads to, is not followed:
// it stands for an open file, whatever its text.
func Follow(path string) (string, error) {
	asked := path
	for range mostLinks {
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Type() != fs.ModeSymlink {
			return path, nil // whoever uses the path finds out what is wrong with it
		}
		// The directory is not cleaned as text: it may be a link too.
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

// follow is Follow for a path beside which something is made: the directory
// in the result has no links, so that it can be cleaned as text.
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
