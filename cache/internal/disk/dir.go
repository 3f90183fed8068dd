package disk

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Directories below the cache's own, all 0700, files in them 0600.
const (
	Files = "files" // KEY.data, KEY.state, KEY.meta, and spools
	Blobs = "blobs" // manifests, config blobs and parts of indexes, by digest
	Refs  = "refs"  // what a reference was last seen as
)

// openFlags never follow a symbolic link that somebody put in the cache.
const openFlags = unix.O_NOFOLLOW | unix.O_CLOEXEC

// Dir is the directory of a cache. Several processes may have it open.
type Dir struct {
	root     *os.Root
	hooks    Hooks
	readOnly bool // it is only looked at
}

// Hooks tell a directory's owner what happens in it.
type Hooks struct {
	Log   *slog.Logger
	Wrong func(by string, pieces int64)               // pieces were found wrong by one of Finders
	Shown func(key string) (shown *File, done func()) // returns the file that readers use, or nil; done ends the use

	Before func(step string)                                  // called between the steps of a write, for tests
	Read   func(f *os.File, p []byte, off int64) (int, error) // of data; nil: os.File.ReadAt
}

// Open opens the directory name for reading and writing and makes it if there
// is none. One that other users can write is refused.
func Open(name string, hooks Hooks) (*Dir, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	d, err := OpenToRead(name, hooks)
	if err != nil {
		return nil, err
	}
	d.readOnly = false
	for _, sub := range []string{Files, Blobs, Refs} {
		// If one cannot be made, nothing is found in it, and nothing kept.
		if err := d.root.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) && !IsReadOnly(err) {
			_ = d.Close()
			return nil, err
		}
	}
	return d, nil
}

// OpenToRead opens the directory name, and makes nothing. Files that are copied
// from are not changed.
func OpenToRead(name string, hooks Hooks) (*Dir, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, &fs.PathError{Op: "open", Path: name, Err: unix.ENOTDIR}
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("others can write to it (mode %04o): chmod 0700 it, or use another: %w", info.Mode().Perm(), fs.ErrPermission)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if hooks.Read == nil {
		hooks.Read = (*os.File).ReadAt
	}
	return &Dir{root, hooks, true}, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Name returns the directory's name.
func (d *Dir) Name() string { return d.root.Name() }

// OpenFile opens a file of the directory.
func (d *Dir) OpenFile(name string, flags int) (*os.File, error) {
	return d.root.OpenFile(name, flags|openFlags, 0o600)
}

// Stat describes a file of the directory. It follows no symbolic link.
func (d *Dir) Stat(name string) (fs.FileInfo, error) { return d.root.Lstat(name) }

// Missing reports whether there is no such file.
func (d *Dir) Missing(name string) bool {
	_, err := d.root.Lstat(name)
	return errors.Is(err, fs.ErrNotExist)
}

// Touch sets when a file was last used.
func (d *Dir) Touch(name string, when time.Time) error { return d.root.Chtimes(name, when, when) }

// Unlink removes a file, if there is one.
func (d *Dir) Unlink(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Names returns the names in one of the directories, as many as can be read.
func (d *Dir) Names(sub string) ([]string, error) {
	dir, err := d.root.Open(sub)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// Statfs returns the space of the directory's file system.
func (d *Dir) Statfs() (st unix.Statfs_t, err error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return st, err
	}
	defer dir.Close()
	err = os.NewSyscallError("fstatfs", unix.Fstatfs(int(dir.Fd()), &st))
	return st, err
}

// mostSmall bounds a small file, in bytes: a manifest, a config blob, a
// reference.
const mostSmall = 64 << 20

// ReadFile reads a small file.
func (d *Dir) ReadFile(name string) ([]byte, error) {
	f, err := d.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostSmall+1))
	if err == nil && len(data) > mostSmall {
		err = fmt.Errorf("%s is larger than %d bytes: %w", name, mostSmall, fs.ErrInvalid)
	}
	return data, err
}

// TmpMark is in the names of files that are being written. One that is older
// than tmpAge was left by a process that died.
const (
	TmpMark = ".tmp-"
	tmpAge  = time.Hour
)

// WriteFile puts a small file in place: whole, or as it was.
func (d *Dir) WriteFile(name string, data []byte) error {
	if old, err := d.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	tmp := name + TmpMark + rand.Text()
	f, err := d.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	crashpoint.Reach("temporary file made")
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		crashpoint.Reach("temporary file written")
		err = d.root.Rename(tmp, name)
	}
	if err != nil {
		_ = d.root.Remove(tmp)
	}
	return err
}

// Blob returns a small blob. If there is none, the error is fs.ErrNotExist; one
// that does not have its digest any more is removed and counts as none.
func (d *Dir) Blob(digest string) ([]byte, error) {
	name, err := blobPath(digest)
	if err != nil {
		return nil, err
	}
	data, err := d.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if digests.Of(data) == digest {
		return data, nil
	}
	if !d.readOnly {
		_ = d.root.Remove(name)
	}
	return nil, fmt.Errorf("cached blob %s is damaged: %w", digest, fs.ErrNotExist)
}

// PutBlob keeps a small blob. data must have the digest.
func (d *Dir) PutBlob(digest string, data []byte) error {
	name, err := blobPath(digest)
	if err != nil {
		return err
	}
	if digests.Of(data) != digest {
		return fmt.Errorf("blob %s: %w", digest, layout.ErrContent)
	}
	return d.WriteFile(name, data)
}

// blobPath returns the name of a small blob's file.
func blobPath(digest string) (string, error) {
	digits, ok := digests.Hex(digest)
	if !ok {
		return "", fmt.Errorf("digest %q: %w", digest, layout.ErrContent)
	}
	return path.Join(Blobs, digits), nil
}

// Stored is a cached file as it lies on disk.
type Stored struct {
	Key  string
	Disk int64     // bytes of blocks of its three files
	Used time.Time // when it was last opened or written
}

// Usage returns the cached files, the least recently used first, and the bytes
// of blocks of everything in the directory.
func (d *Dir) Usage() (files []Stored, total int64) {
	byKey := map[string]*Stored{}
	for _, sub := range []string{Files, Blobs, Refs} {
		names, _ := d.Names(sub)
		for _, name := range names {
			info, err := d.root.Lstat(path.Join(sub, name))
			if err != nil {
				continue // gone meanwhile
			}
			disk := Blocks(info)
			total += disk
			key, _, ok := strings.Cut(name, ".")
			if sub != Files || !ok || len(key) != 64 {
				continue
			}
			s := byKey[key]
			if s == nil {
				s = &Stored{Key: key}
				byKey[key] = s
			}
			s.Disk += disk
			if used := info.ModTime(); used.After(s.Used) {
				s.Used = used
			}
		}
	}
	for _, s := range byKey {
		files = append(files, *s)
	}
	slices.SortFunc(files, func(a, b Stored) int {
		return cmp.Or(a.Used.Compare(b.Used), strings.Compare(a.Key, b.Key))
	})
	return files, total
}

// Blocks returns the bytes that a file takes on disk.
func Blocks(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// ErrInUse is the error of Remove if this or another process uses the file.
var ErrInUse = errors.New("in use")

// Remove unlinks a cached file that nobody uses. Nothing is truncated, so
// a process that opened it meanwhile reads on.
func (d *Dir) Remove(key string) error {
	name := path.Join(Files, key)
	f, err := d.OpenFile(name+".state", os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer f.Close()
	if ok, err := TryLock(f, unix.F_WRLCK, LockInUse, 1); err != nil || !ok {
		return errors.Join(ErrInUse, err)
	}
	if gone, err := unlinked(f); err != nil || gone {
		return errors.Join(ErrInUse, err) // somebody else removed it, and it may be there anew
	}
	// The state goes last: as long as it is there, a process that opens it
	// waits for our lock, and then finds it unlinked. A state without its data
	// is damage, and made again.
	var errs []error
	for _, suffix := range []string{".data", ".meta", ".state"} {
		errs = append(errs, d.Unlink(name+suffix))
		crashpoint.Reach("unlinked")
	}
	return errors.Join(errs...)
}

// InUse reports whether another open file description has the cached file in
// use; sf is its state file.
func InUse(sf *os.File) bool { return lockedElsewhere(sf, LockInUse, 1) }

// LastUsed returns when a cached file was last used.
func (d *Dir) LastUsed(key string) time.Time {
	info, err := d.root.Lstat(path.Join(Files, key+".state"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// Refuses reports whether err is about the disk, not about the file.
func Refuses(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EACCES, unix.EPERM, unix.EIO, unix.EMFILE, unix.ENFILE, unix.EFBIG, unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOLCK, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// IsReadOnly reports whether err is about something that may only be read.
func IsReadOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}
