package guestfs

import (
	"fmt"
	"runtime"
)

// recovered turns a panic of a parser into ErrDamaged. No panic is known;
// what is not known would end the caller.
func recovered(err *error) {
	r := recover()
	if r == nil {
		return
	}
	where := ""
	for depth := range 20 {
		// The first frame that is not the runtime's is the parser's.
		if pc, file, line, ok := runtime.Caller(depth + 1); ok {
			if f := runtime.FuncForPC(pc); f != nil && !isRuntime(f.Name()) {
				where = fmt.Sprintf("%s:%d", file, line)
				break
			}
		}
	}
	*err = fmt.Errorf("%w: parser at %s: %v", ErrDamaged, where, r)
}

func isRuntime(name string) bool { return len(name) > 8 && name[:8] == "runtime." }

// guarded is an FS whose panics are errors. A panic in a visit function is
// the caller's own, and one as well.
type guarded struct{ FS }

func (g guarded) Stat(inode uint64) (info Info, err error) {
	defer recovered(&err)
	return g.FS.Stat(inode)
}

func (g guarded) Lookup(dir uint64, name string) (inode uint64, err error) {
	defer recovered(&err)
	return g.FS.Lookup(dir, name)
}

func (g guarded) ReadDir(dir uint64, visit func(DirEntry) error) (err error) {
	defer recovered(&err)
	return g.FS.ReadDir(dir, visit)
}

func (g guarded) ReadAt(inode uint64, p []byte, off int64) (n int, err error) {
	defer recovered(&err)
	return g.FS.ReadAt(inode, p, off)
}

func (g guarded) Extents(inode uint64, visit func(Extent) error) (err error) {
	defer recovered(&err)
	return g.FS.Extents(inode, visit)
}

func (g guarded) Readlink(inode uint64) (target string, err error) {
	defer recovered(&err)
	return g.FS.Readlink(inode)
}

func (g guarded) Xattrs(inode uint64) (all map[string][]byte, err error) {
	defer recovered(&err)
	return g.FS.Xattrs(inode)
}

// PrefetchTree does nothing for a format that does not know it.
func (g guarded) PrefetchTree(dir uint64) (err error) {
	defer recovered(&err)
	if p, ok := g.FS.(TreePrefetcher); ok {
		return p.PrefetchTree(dir)
	}
	return nil
}
