package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/mounting"
)

// littleSpace is the least space for a useful cache, in bytes.
const littleSpace = 1 << 30

// checkCache checks the cache's directory, or the one in which it would be
// made. probe is an unnamed file there, or nil if none can be made.
func checkCache(cfg *mounting.Config) (all []Check, probe *os.File) {
	dir, err := existing(cfg.CacheDir)
	if err != nil {
		return []Check{cacheProblem("use another directory: --cache-dir", err)}, nil
	}
	if dir == cfg.CacheDir {
		if all = checkOwner(dir); len(all) > 0 {
			return all, nil
		}
	}
	probe, err = nameless(dir)
	if err != nil {
		return []Check{cacheProblem("use a directory that this user can write to: --cache-dir", err)}, nil
	}
	where := dir
	if dir != cfg.CacheDir {
		where = cfg.CacheDir + " (made by the first mount)"
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(probe.Fd()), &st); err != nil {
		return []Check{cacheProblem("use another directory: --cache-dir", fmt.Errorf("%s: statfs: %w", dir, err))}, probe
	}
	on := fileSystemOf(probe, int64(st.Type))
	all = append(all, checkSparse(probe, where, on.kind))
	if all[0].Level != Problem {
		all = append(all, checkKeeping(dir, on.kind)...)
	}
	all = append(all, checkSpace(cfg, &st), checkReflink(dir, probe, on.kind))
	return append(all, on.check()...), probe
}

// existing returns the longest existing prefix of dir's path.
func existing(dir string) (string, error) {
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", &fs.PathError{Op: "use", Path: dir, Err: unix.ENOTDIR}
		case err == nil:
			return dir, nil
		case !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir:
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

func cacheProblem(do string, err error) Check {
	return problem("cache", do, &withKind{err, mounting.ErrCache})
}

// checkOwner checks who can write to the cache. It returns nothing if that
// is as it should be.
func checkOwner(dir string) []Check {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return []Check{cacheProblem("use another directory: --cache-dir", &fs.PathError{Op: "stat", Path: dir, Err: err})}
	}
	if st.Mode&0o022 != 0 {
		return []Check{cacheProblem("chmod 0700 "+dir, fmt.Errorf("others can write to %s (mode %04o)", dir, st.Mode&0o7777))}
	}
	return nil
}

// nameless makes a file that is gone when it is closed.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".epochfs-doctor-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkSparse writes a page into the middle of a file without data.
func checkSparse(f *os.File, where, kind string) Check {
	const apparent, at = 1 << 30, 512 << 20
	err := f.Truncate(apparent)
	if err == nil {
		_, err = f.WriteAt(make([]byte, 4096), at)
	}
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err != nil {
		return cacheProblem("use a directory on another file system: --cache-dir", err)
	}
	if st.Blocks*512 > at {
		return cacheProblem("use a directory on ext4, xfs or btrfs: --cache-dir", fmt.Errorf("%s on %s: no sparse files", where, kind))
	}
	return ok("cache", "%s on %s: writable, sparse files work", where, kind)
}

func checkSpace(cfg *mounting.Config, st *unix.Statfs_t) Check {
	free, total := int64(st.Bavail)*int64(st.Bsize), int64(st.Blocks)*int64(st.Bsize)
	text := fmt.Sprintf("%s free of %s", humanize.IBytes(uint64(free)), humanize.IBytes(uint64(total)))
	switch {
	case free == 0:
		return note("space", "epochfs cache prune --all; or use another file system: --cache-dir", "%s: fetched bytes are not stored", text)
	case cfg.CacheSize > free:
		return note("space", "choose a smaller --cache-size", "%s, which is less than --cache-size %s", text, humanize.IBytes(uint64(cfg.CacheSize)))
	case free < littleSpace || cfg.CacheSize == 0 && free < total/10:
		return note("space", "epochfs cache prune --older 7d; or use another file system: --cache-dir", "%s: few of the fetched bytes can be stored", text)
	}
	return ok("space", "%s", text)
}

// checkReflink clones the probe.
func checkReflink(dir string, probe *os.File, kind string) Check {
	to, err := nameless(dir)
	if err == nil {
		defer to.Close()
		err = unix.IoctlFileClone(int(to.Fd()), int(probe.Fd()))
	}
	if err != nil {
		return note("reflink", "put the cache on xfs or btrfs: --cache-dir", "%s does not share blocks (%v): parts that files have in common, and files of materialize --to-dir, are copied", kind, err)
	}
	return ok("reflink", "files share the blocks that they have in common")
}

// checkKeeping tries the other operations that files of the cache need.
func checkKeeping(dir, kind string) []Check {
	f, err := nameless(dir)
	if err == nil {
		defer f.Close()
		return keeping(kind, func() (bool, error) { return mounting.TryCache(f) })
	}
	return keeping(kind, func() (bool, error) { return false, err })
}

// keeping returns the checks of try on a file system.
func keeping(kind string, try func() (zeros bool, err error)) []Check {
	zeros, err := try()
	switch {
	case err != nil:
		return []Check{note("keeping", "use a directory on ext4, xfs or btrfs: --cache-dir", "fetched bytes cannot be stored on %s: %v", kind, err)}
	case zeros:
		return []Check{ok("keeping", "%s has no fallocate: zeros are written instead", kind)}
	}
	return nil
}
