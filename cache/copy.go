package cache

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied before another look at the context.
const copyStep = 64 << 20

// CopyTo makes dst, which is empty and has the file's size, hold the file:
// as a second name for the same blocks where the file system can, else
// copied by the kernel, holes kept. It fetches nothing: ok is false, and
// dst as it was, unless all of the file is present and verified. onBytes
// is told of payload as it is copied.
func (f *File) CopyTo(ctx context.Context, dst *os.File, onBytes func(int64)) (ok bool, err error) {
	if f.entry.inMemory() || !f.Complete() || !f.Verified() || f.entry.state.unsafe() {
		return false, nil
	}
	return true, f.entry.copyTo(ctx, dst, onBytes)
}

// Kept says whether what is fetched of the file can be kept on disk, as
// far as is known.
func (f *File) Kept() bool { return !f.entry.unkept }

// ReadOnly says that it cannot because the cache can only be read. What is
// there is served from it.
func (f *File) ReadOnly() bool { return readOnly(f.entry.refused) }

// CopyTo is File.CopyTo for a file as it was found.
func (l *Local) CopyTo(ctx context.Context, dst *os.File, onBytes func(int64)) (ok bool, err error) {
	if l.entry.inMemory() || l.entry.state.unsafe() {
		return false, nil
	}
	for part := range l.entry.file.Parts {
		if !l.entry.partVerified(part) {
			return false, nil
		}
	}
	return true, l.entry.copyTo(ctx, dst, onBytes)
}

func (e *entry) copyTo(ctx context.Context, dst *os.File, onBytes func(int64)) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(e.data.Fd())); err == nil {
		onBytes(e.file.PayloadSize())
		return nil
	}
	for _, s := range e.file.Map.Segments() {
		if err := copyRun(ctx, dst, e.data, s.Offset, s.Offset+s.Length, onBytes); err != nil {
			return err
		}
	}
	return nil
}

// copyRun copies bytes [off, end) to the same place of dst.
func copyRun(ctx context.Context, dst, src *os.File, off, end int64, onBytes func(int64)) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := copyRange(dst, src, off, min(copyStep, end-off))
		if err != nil {
			return err
		}
		off += n
		onBytes(n)
	}
	return nil
}

// copyRange copies at most n bytes from off on to the same place of dst.
func copyRange(dst, src *os.File, off, n int64) (int64, error) {
	from, to := off, off
	for {
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(n), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && k > 0:
			return int64(k), nil
		case err == nil:
			return 0, io.ErrUnexpectedEOF
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return io.Copy(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, n))
		}
		return 0, os.NewSyscallError("copy_file_range", err)
	}
}
