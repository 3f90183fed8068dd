package inside

import (
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
)

// directly is the size from which a file's bytes do not pass through the
// child, which then only returns their place on the disk.
const directly = 256 << 10

// Contents visits the data of [off, off+n) of a regular file in ascending
// order; what it leaves out is zeros. The bytes passed to visit are valid
// until it returns.
func (f *FS) Contents(file *File, off, n int64, visit func(off int64, p []byte) error) error {
	switch {
	case file.Metacopy:
		return &guestError{vfs.ErrMetacopy.Error(), wire.Metacopy}
	case n <= directly:
		return f.readTo(file.Inode, off, n, visit)
	}
	// A file of which this layer has only the metadata reads as zeros: the
	// child checks that.
	if err := f.readTo(file.Inode, off, 1, func(int64, []byte) error { return nil }); err != nil {
		return err
	}
	extents, err := f.Extents(file.Inode, file.Size)
	if errors.Is(err, vfs.ErrUnsupported) {
		extents, err = []Range{{0, file.Size}}, nil
	}
	if err != nil {
		return err
	}
	var onDisk []DiskRange
	if f.s.raw {
		if onDisk, err = f.Locate(file.Inode, file.Size); err != nil && !errors.Is(err, vfs.ErrUnsupported) {
			return err
		}
	}
	for _, x := range extents {
		from, to := max(x.Offset, off), min(x.Offset+x.Length, off+n)
		for from < to {
			for len(onDisk) > 0 && onDisk[0].Offset+onDisk[0].Length <= from {
				onDisk = onDisk[1:]
			}
			end := to
			switch {
			case len(onDisk) == 0 || onDisk[0].Offset >= to:
				err = f.readTo(file.Inode, from, end-from, visit)
			case onDisk[0].Offset > from:
				end = onDisk[0].Offset
				err = f.readTo(file.Inode, from, end-from, visit)
			default:
				end = min(to, onDisk[0].Offset+onDisk[0].Length)
				err = f.s.copyDisk(onDisk[0].Disk+from-onDisk[0].Offset, end-from, from, visit)
			}
			if err != nil {
				return err
			}
			from = end
		}
	}
	return nil
}

// readTo visits bytes that the child reads.
func (f *FS) readTo(inode uint64, off, n int64, visit func(off int64, p []byte) error) error {
	return f.ReadRange(inode, writerFunc(func(p []byte) error {
		err := visit(off, p)
		off += int64(len(p))
		return err
	}), off, n)
}

type writerFunc func(p []byte) error

func (w writerFunc) Write(p []byte) (int, error) {
	if err := w(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// copyDisk visits n bytes of a raw disk at offset at, without the child, as
// a file's bytes from off on.
func (s *Session) copyDisk(at, n, off int64, visit func(off int64, p []byte) error) error {
	g := s.images[0]
	if cap(s.copied) == 0 {
		s.copied = make([]byte, 1<<20)
	}
	for n > 0 {
		p := s.copied[:min(n, int64(cap(s.copied)))]
		if got, err := g.src.ReadOn(s.ctx, p, at); got < len(p) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("bytes from %d on: %w", at, err)
		}
		g.mu.Lock()
		g.stats.Copied += int64(len(p))
		g.mu.Unlock()
		if err := visit(off, p); err != nil {
			return err
		}
		at, off, n = at+int64(len(p)), off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
