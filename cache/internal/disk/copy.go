package disk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyStep is how much is copied before another look at the context.
const copyStep = 64 << 20

// CopyTo makes dst, which is empty and has the file's size, hold the file: as a
// second name for the same blocks if the file system can, else copied by the
// kernel, holes kept. All of the file must be present. onBytes is called with
// the bytes of payload that were copied.
func (f *File) CopyTo(ctx context.Context, dst *os.File, onBytes func(int64)) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(f.Data.Fd())); err == nil {
		onBytes(f.Layout.PayloadSize())
		return nil
	}
	return f.CopyPayload(ctx, dst, 0, f.Layout.PayloadSize(), onBytes)
}

// CopyPayload copies payload [from, to), which must be present, to where it
// belongs in dst.
func (f *File) CopyPayload(ctx context.Context, dst *os.File, from, to int64, onBytes func(int64)) error {
	for r := range f.Layout.Map.Payload(from, to-from) {
		for off, end := r.Offset, r.Offset+r.Length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(dst, f.Data, off, min(copyStep, end-off))
			if err != nil {
				return err
			}
			off += n
			onBytes(n)
		}
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
