package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// Bounds on extended attributes: the kernel's on a value (XATTR_SIZE_MAX),
// and ours on all of a file.
const (
	maxXattr  = 64 << 10
	maxXattrs = 1 << 20
)

const xattrMagic = 0xEA020000

// Indexes of attributes' names, and what each stands for: attributes.rst.
const (
	indexACLAccess  = 2
	indexACLDefault = 3
	indexSystem     = 7
)

var xattrPrefixes = map[uint8]string{
	0: "", 1: "user.", indexACLAccess: "system.posix_acl_access", indexACLDefault: "system.posix_acl_default",
	4: "trusted.", 6: "security.", indexSystem: "system.", 8: "system.richacl",
}

// xattr is an attribute as it stands on disk.
type xattr struct {
	index uint8
	name  string
	value []byte
	inode uint32 // holds the value instead, if it is not 0
	size  int64
}

// parseXattrs visits the attributes whose entries begin at b. Their values'
// offsets count from base.
func parseXattrs(b, base []byte, visit func(xattr) error) error {
	for len(b) >= 4 && le.Uint32(b) != 0 {
		if len(b) < 16 {
			return fmt.Errorf("%w: extended attributes end early", vfs.ErrDamaged)
		}
		name, offset := int(b[0]), int(le.Uint16(b[2:]))
		x := xattr{index: b[1], inode: le.Uint32(b[4:]), size: int64(le.Uint32(b[8:]))}
		length := (16 + name + 3) &^ 3
		if 16+name > len(b) || x.size > maxXattr {
			return fmt.Errorf("%w: an extended attribute with a name of %d bytes and a value of %d", vfs.ErrDamaged, name, x.size)
		}
		x.name = string(b[16 : 16+name])
		if x.inode == 0 && x.size > 0 {
			if offset+int(x.size) > len(base) {
				return fmt.Errorf("%w: extended attribute %q lies outside of its block", vfs.ErrDamaged, x.name)
			}
			x.value = base[offset : offset+int(x.size)]
		}
		if err := visit(x); err != nil {
			return err
		}
		b = b[min(length, len(b)):]
	}
	return nil
}

// inodeXattrs visits the attributes behind an inode's own fields.
func (i *inode) inodeXattrs(visit func(xattr) error) error {
	at := 128 + i.extra()
	if i.extra() == 0 || at+4 > len(i.raw) || le.Uint32(i.raw[at:]) != xattrMagic {
		return nil
	}
	return parseXattrs(i.raw[at+4:], i.raw[at+4:], visit)
}

// Xattrs returns a file's attributes as getxattr would, from the inode and
// from the block of attributes.
func (f *FS) Xattrs(number uint64) (map[string][]byte, error) {
	i, err := f.existing(number)
	if err != nil {
		return nil, err
	}
	all, total := map[string][]byte{}, int64(0)
	visit := func(x xattr) error {
		prefix, ok := xattrPrefixes[x.index]
		if !ok || x.index == indexSystem { // system.data is inline data
			return nil
		}
		if total += x.size + int64(len(x.name)); total > maxXattrs {
			return fmt.Errorf("%w: more than %d bytes of extended attributes", vfs.ErrDamaged, maxXattrs)
		}
		value, err := f.xattrValue(x)
		if err != nil {
			return err
		}
		all[prefix+x.name] = value
		return nil
	}
	if err := i.inodeXattrs(visit); err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	block := uint64(le.Uint32(i.raw[0x68:]))
	if f.incompat&incompat64bit != 0 {
		block |= uint64(le.Uint16(i.raw[0x76:])) << 32
	}
	if block == 0 {
		return all, nil
	}
	b, err := f.block(block)
	if err != nil {
		return nil, err
	}
	if le.Uint32(b) != xattrMagic {
		return nil, fmt.Errorf("%w: ext4 inode %d: block of extended attributes has no magic number", vfs.ErrDamaged, number)
	}
	if err := parseXattrs(b[32:], b, visit); err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	return all, nil
}

func (f *FS) xattrValue(x xattr) ([]byte, error) {
	value := bytes.Clone(x.value)
	if x.inode != 0 {
		holder, err := f.existing(uint64(x.inode), vfs.Regular)
		if err != nil {
			return nil, err
		}
		value = make([]byte, x.size)
		if n, err := f.readInode(holder, value, 0); n < len(value) {
			return nil, fmt.Errorf("value of extended attribute %q: %w", x.name, err)
		}
	}
	if value == nil {
		value = []byte{}
	}
	if x.index == indexACLAccess || x.index == indexACLDefault {
		return acl(value)
	}
	return value, nil
}

// acl converts an access control list from the disk's form, whose entries
// have an id only where it means something, to the form of getxattr.
func acl(b []byte) ([]byte, error) {
	const version, onDisk, user, group = 2, 1, 0x02, 0x08
	if len(b) < 4 || le.Uint32(b) != onDisk {
		return nil, fmt.Errorf("%w: access control list of an unknown version", vfs.ErrDamaged)
	}
	list := binary.LittleEndian.AppendUint32(nil, version)
	for b = b[4:]; len(b) >= 4; {
		tag, id, length := le.Uint16(b), ^uint32(0), 4
		if tag == user || tag == group {
			if len(b) < 8 {
				break
			}
			id, length = le.Uint32(b[4:]), 8
		}
		list = append(list, b[:4]...)
		list = le.AppendUint32(list, id)
		b = b[length:]
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: access control list ends early", vfs.ErrDamaged)
	}
	return list, nil
}

// inline returns contents that lie in the inode: 60 bytes in place of block
// numbers, the rest as an attribute.
func (f *FS) inline(i *inode) ([]byte, error) {
	data := bytes.Clone(i.raw[0x28 : 0x28+60])
	err := i.inodeXattrs(func(x xattr) error {
		if x.index == indexSystem && x.name == "data" {
			data = append(data, x.value...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.number, err)
	}
	return data[:min(int64(len(data)), i.size)], nil
}
