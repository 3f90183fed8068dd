package ntfs

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// fileSystem is the DOS attribute of files that belong to the system: Interix
// keeps links and devices in such files.
const fileSystem = 0x4

// Tags of reparse points: [MS-FSCC] 2.1.2.1. The last ones are those of the
// Windows Subsystem for Linux.
const (
	tagMountPoint = 0xa0000003
	tagSymlink    = 0xa000000c
	tagWSLLink    = 0xa000001d
	tagSocket     = 0x80000023
	tagFIFO       = 0x80000024
	tagChar       = 0x80000025
	tagBlock      = 0x80000026
)

// maxReparse bounds a reparse point (MAXIMUM_REPARSE_DATA_BUFFER_SIZE).
const maxReparse = 16 << 10

// reparse returns a file's reparse point: its tag and its data.
func (r *record) reparse(f *FS) (tag uint32, data []byte, ok bool) {
	s, err := f.stream(r, typeReparse, "")
	if err != nil || s.size < 8 || s.size > maxReparse {
		return 0, nil, false
	}
	b := make([]byte, s.size)
	if _, err := f.readStream(s, b, 0, nil); err != nil {
		return 0, nil, false
	}
	return le.Uint32(b), b[8:], true
}

// special sets the type of a file that is not what its record seems to be.
func (f *FS) special(r *record, info *vfs.Info) error {
	tag, _, ok := r.reparse(f)
	if !ok {
		return nil
	}
	switch tag {
	case tagMountPoint, tagSymlink, tagWSLLink:
		info.Type = vfs.Symlink
		target, err := r.target(f)
		if err != nil {
			return err
		}
		info.Size = int64(len(target))
	case tagSocket:
		info.Type = vfs.Socket
	case tagFIFO:
		info.Type = vfs.FIFO
	case tagChar:
		info.Type = vfs.CharDevice
	case tagBlock:
		info.Type = vfs.BlockDevice
	}
	return nil
}

// Readlink returns the target of a link or a junction, in the words of
// Windows, but with slashes.
func (f *FS) Readlink(inode uint64) (string, error) {
	r, err := f.existing(inode)
	if err != nil {
		return "", err
	}
	return r.target(f)
}

func (r *record) target(f *FS) (string, error) {
	tag, b, ok := r.reparse(f)
	header := 8 // offsets and lengths of the two forms of the target
	switch {
	case ok && tag == tagWSLLink && len(b) >= 4:
		return strings.TrimRight(string(b[4:]), "\x00"), nil
	case ok && tag == tagSymlink:
		header = 12
	case ok && tag == tagMountPoint:
	default:
		return "", fmt.Errorf("inode %d: %w", r.number, fs.ErrInvalid)
	}
	if len(b) < header {
		return "", damaged("inode %d: a link's target of %d bytes", r.number, len(b))
	}
	at, n := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if n == 0 { // the form for people is missing
		at, n = int(le.Uint16(b)), int(le.Uint16(b[2:]))
	}
	if header+at+n > len(b) {
		return "", damaged("inode %d: a link's target lies outside", r.number)
	}
	return strings.ReplaceAll(text(b[header+at:header+at+n]), `\`, "/"), nil
}
