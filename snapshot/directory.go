package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/whole"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// FileCopier is an optional interface of Payloads. It makes a file without
// passing its bytes through this process, as a file system can that shares
// them between files.
type FileCopier interface {
	// CopyFile makes dst, which is empty and has the file's size, a copy of
	// f, with every byte verified and holes kept. If it cannot, ok is false,
	// and dst contains nothing that f does not. It reports progress to
	// onBytes, in bytes of payload.
	CopyFile(ctx context.Context, dst *os.File, f *layout.File, onBytes func(int64)) (ok bool, err error)
}

// DirOptions configure WriteDir.
type DirOptions struct {
	LocalName   string            // config.name of the envelope; "" to keep it
	Description string            // config.description of the envelope; "" to keep it
	OnBytes     func(delta int64) // receives the number of bytes of data written since the last call; may be nil
}

// ErrNotEmpty is wrapped by the error of WriteDir for a directory that is
// not empty.
var ErrNotEmpty = errors.New("directory is not empty")

// WriteDir writes the snapshot to dir as plain files with the artifact's
// modes and holes, including snapshot.json: what cocoon starts a VM from.
// dir must be an empty directory, or not exist. It appears at once,
// complete, verified and on disk, or not at all. WriteDir removes what a
// killed process left of an earlier try.
func (a *Artifact) WriteDir(ctx context.Context, dir string, src Payloads, opts DirOptions) (err error) {
	if a.Kind != manifest.KindSnapshot {
		return &kindError{a.Kind}
	}
	text, err := editEnvelope(a.Envelope, opts.LocalName, opts.Description)
	if err != nil {
		return fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	target, mode, err := checkTarget(dir)
	if err != nil {
		return err
	}
	temp, err := whole.MakeDir(target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, temp.Close()) }()
	w := &dirWriter{dir: temp, src: src, opts: &opts}
	if err := w.write(ctx, text, a.Files); err != nil {
		return err
	}
	err = temp.Commit(mode)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	return err
}

// CheckDir returns an error if it is already known that WriteDir cannot make
// dir.
func CheckDir(dir string) error {
	_, _, err := checkTarget(dir)
	return err
}

// checkTarget checks that dir can be made. It returns its path without
// symbolic links and its future mode: the present one if it exists.
func checkTarget(dir string) (target string, mode os.FileMode, err error) {
	found, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return newTarget(dir)
	case err != nil:
		return "", 0, err
	case len(found) > 0:
		return "", 0, fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	if target, err = filepath.EvalSymlinks(dir); err != nil {
		return "", 0, err
	}
	mode, err = replaceable(dir, target)
	return target, mode, err
}

// newTarget is checkTarget for a directory that does not exist.
func newTarget(dir string) (target string, mode os.FileMode, err error) {
	if _, err := os.Lstat(filepath.Clean(dir)); err == nil {
		return "", 0, &os.PathError{Op: "make", Path: dir, Err: errors.New("it is a dangling symbolic link")}
	}
	_, err = os.Stat(filepath.Dir(filepath.Clean(dir)))
	return dir, 0o700, err
}

// replaceable returns the mode of an empty directory, or an error if it
// cannot be replaced by another.
func replaceable(dir, target string) (os.FileMode, error) {
	var own, above, here unix.Stat_t
	var more unix.Statx_t
	err := errors.Join(unix.Stat(target, &own), unix.Stat(filepath.Join(target, ".."), &above), unix.Stat(".", &here),
		unix.Statx(unix.AT_FDCWD, target, 0, 0, &more))
	if err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	switch {
	case own.Dev != above.Dev || own.Ino == above.Ino || more.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return 0, &os.PathError{Op: "replace", Path: dir, Err: errors.New("a mount point cannot be replaced: name a directory in it")}
	case own.Dev == here.Dev && own.Ino == here.Ino:
		return 0, &os.PathError{Op: "replace", Path: dir, Err: errors.New("the working directory cannot be replaced: change to another one")}
	}
	return os.FileMode(own.Mode & 0o777), nil
}

// dirWriter writes one directory.
type dirWriter struct {
	dir  *whole.Dir
	src  Payloads
	opts *DirOptions
}

func (w *dirWriter) write(ctx context.Context, envelope []byte, files []*layout.File) error {
	err := w.create(EnvelopeName, 0o644, int64(len(envelope)), func(f *os.File) error {
		_, err := f.Write(envelope)
		return err
	})
	for _, f := range files {
		if err != nil {
			return err
		}
		err = w.create(f.Name, os.FileMode(f.Mode)&0o777, f.Size(), func(out *os.File) error { return w.file(ctx, out, f) })
	}
	return err
}

// create makes one file, which is on disk when create returns. File names
// were checked when the artifact was loaded.
func (w *dirWriter) create(name string, mode os.FileMode, size int64, fill func(*os.File) error) error {
	f, err := w.dir.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := fill(f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return errors.Join(f.Chmod(mode), f.Sync(), f.Close())
}

// file writes one file, with the FileCopier if it can.
func (w *dirWriter) file(ctx context.Context, out *os.File, f *layout.File) error {
	onBytes := w.opts.OnBytes
	if onBytes == nil {
		onBytes = func(int64) {}
	}
	if c, ok := w.src.(FileCopier); ok {
		if done, err := c.CopyFile(ctx, out, f, onBytes); done || err != nil {
			return err
		}
	}
	payload, err := w.src.OpenPayload(ctx, f)
	if err != nil {
		return err
	}
	defer payload.Close()
	to := &scattered{to: out, m: f.Map}
	if err := copyExactly(ctx, counted{to, onBytes}, payload, f.PayloadSize()); err != nil {
		return err
	}
	return verified(payload, f.PayloadSize())
}

// scattered writes a payload to its places in the file.
type scattered struct {
	to io.WriterAt
	m  *sparse.Map
	at int64 // in the payload
}

func (s *scattered) Write(p []byte) (n int, err error) {
	for run := range s.m.Payload(s.at, int64(len(p))) {
		k, err := s.to.WriteAt(p[n:n+int(run.Length)], run.Offset)
		n += k
		s.at += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// counted counts the bytes written.
type counted struct {
	io.Writer
	onBytes func(int64)
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.onBytes(int64(n))
	return n, err
}
