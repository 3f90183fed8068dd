package xfs

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Bounds on extended attributes: the format's on a value, ours on all of a
// file and on its blocks of names.
const (
	maxXattr  = 64 << 10
	maxXattrs = 1 << 20
	maxLeaves = 1 << 12
)

// Flags of attributes.
const (
	attrLocal      = 0x01
	attrRoot       = 0x02
	attrSecure     = 0x04
	attrParent     = 0x08
	attrIncomplete = 0x80
)

// xattrs collects attributes.
type xattrs struct {
	all   map[string][]byte
	total int
}

// add takes an attribute under the name that the kernel gives it.
func (x *xattrs) add(flags byte, name string, value []byte) error {
	if flags&(attrIncomplete|attrParent) != 0 {
		return nil
	}
	if x.total += len(name) + len(value); x.total > maxXattrs {
		return damaged("more than %d bytes of extended attributes", maxXattrs)
	}
	prefix := "user."
	switch {
	case flags&attrRoot != 0:
		prefix = "trusted."
		if kind, ok := strings.CutPrefix(name, "SGI_ACL_"); ok {
			if err := x.addACL(kind, value); err != nil {
				return err
			}
		}
	case flags&attrSecure != 0:
		prefix = "security."
	}
	x.all[prefix+name] = append([]byte{}, value...)
	return nil
}

// addACL adds an access control list a second time, in the form of getxattr:
// a version, and of each entry a tag, permissions and an id.
func (x *xattrs) addACL(kind string, b []byte) error {
	name := map[string]string{"FILE": "system.posix_acl_access", "DEFAULT": "system.posix_acl_default"}[kind]
	if name == "" {
		return nil
	}
	const size, user, group = 12, 0x02, 0x08
	if len(b) < 4 || int64(len(b)) < 4+size*int64(be.Uint32(b)) {
		return damaged("access control list ends early")
	}
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for n := range int(be.Uint32(b)) {
		e := b[4+size*n:]
		tag, id := be.Uint32(e), be.Uint32(e[4:])
		if tag != user && tag != group {
			id = ^uint32(0)
		}
		list = binary.LittleEndian.AppendUint16(list, uint16(tag))
		list = binary.LittleEndian.AppendUint16(list, be.Uint16(e[8:]))
		list = binary.LittleEndian.AppendUint32(list, id)
	}
	x.all[name] = list
	return nil
}

// Xattrs returns a file's attributes as getxattr would.
func (f *FS) Xattrs(number uint64) (map[string][]byte, error) {
	i, err := f.existing(number)
	if err != nil {
		return nil, err
	}
	x := &xattrs{all: map[string][]byte{}}
	switch {
	case i.attr.bytes == nil:
		return x.all, nil
	case i.attr.format == formatLocal:
		return x.all, x.short(i.attr.bytes)
	case i.attr.extents == 0 && i.attr.format == formatExtents:
		return x.all, nil
	}
	return x.all, f.leaves(i, x)
}

// short reads the attributes that lie in the inode.
func (x *xattrs) short(b []byte) error {
	if len(b) < 4 || int(be.Uint16(b)) > len(b) {
		return damaged("extended attributes of %d bytes in an inode", len(b))
	}
	count := int(b[2])
	b = b[4:max(4, be.Uint16(b))]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return damaged("extended attributes end early")
		}
		name, value := int(b[0]), int(b[1])
		if err := x.add(b[2], string(b[3:3+name]), b[3+name:3+name+value]); err != nil {
			return err
		}
		b = b[3+name+value:]
	}
	return nil
}

// Magic numbers of blocks of attributes, without and with checksums.
const (
	magicLeaf, magicLeaf3 = 0xfbee, 0x3bee
	magicNode, magicNode3 = 0xfebe, 0x3ebe
)

// attrBlock reads a block of the attributes' fork.
func (f *FS) attrBlock(i *inode, block uint32) ([]byte, error) {
	r, err := f.mapped(i, &i.attr, int64(block), int64(block)+1)
	if err != nil {
		return nil, err
	}
	if r.hole {
		return nil, damaged("inode %d: attributes have a hole", i.number)
	}
	return f.pages.Bytes(int64(r.physical)*f.blockSize, int(f.blockSize))
}

// leaves walks down to the first leaf, and from leaf to leaf.
func (f *FS) leaves(i *inode, x *xattrs) error {
	info := 12 // the header's first part
	if f.version == 5 {
		info = 56
	}
	seen := map[uint32]bool{}
	for block := uint32(0); ; {
		if seen[block] || len(seen) == maxLeaves {
			return damaged("inode %d: blocks of attributes form a ring", i.number)
		}
		seen[block] = true
		b, err := f.attrBlock(i, block)
		if err != nil {
			return err
		}
		switch be.Uint16(b[8:]) {
		case magicNode, magicNode3:
			first := info + 4
			if f.version == 5 {
				first += 4
			}
			block = be.Uint32(b[first+4:])
			continue
		case magicLeaf, magicLeaf3:
		default:
			return damaged("inode %d: block of attributes without a magic number", i.number)
		}
		if err := f.leaf(i, x, b, info); err != nil {
			return err
		}
		if block = be.Uint32(b); block == 0 {
			return nil
		}
	}
}

// leaf reads the attributes of one block.
func (f *FS) leaf(i *inode, x *xattrs, b []byte, info int) error {
	count, first := int(be.Uint16(b[info:])), info+20
	if f.version == 5 {
		first += 4
	}
	if first+8*count > len(b) {
		return damaged("inode %d: %d attributes in a block", i.number, count)
	}
	for n := range count {
		e := b[first+8*n:]
		at, flags := int(be.Uint16(e[4:])), e[6]
		if flags&attrIncomplete != 0 {
			continue
		}
		if at+9 > len(b) {
			return damaged("inode %d: attribute at %d", i.number, at)
		}
		if err := f.leafEntry(i, x, b[at:], flags); err != nil {
			return err
		}
	}
	return nil
}

func (f *FS) leafEntry(i *inode, x *xattrs, b []byte, flags byte) error {
	if flags&attrLocal != 0 {
		value, name := int(be.Uint16(b)), int(b[2])
		if 3+name+value > len(b) {
			return damaged("inode %d: attribute ends early", i.number)
		}
		return x.add(flags, string(b[3:3+name]), b[3+name:3+name+value])
	}
	block, size, name := be.Uint32(b), be.Uint32(b[4:]), int(b[8])
	if 9+name > len(b) || size > maxXattr {
		return damaged("inode %d: attribute with a value of %d bytes", i.number, size)
	}
	value, err := f.remote(i, int64(block), int(size))
	if err != nil {
		return err
	}
	return x.add(flags, string(bytes.Clone(b[9:9+name])), value)
}
