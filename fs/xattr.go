package fs

import (
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// xattrs are the extended attributes of a file, in the order listed. A file
// has no attribute whose value is "".
var xattrs = []struct {
	name  string
	value func(*node) string
}{
	{"user.epochfs.digest", func(n *node) string { return n.Digest }},
	{"user.epochfs.mediatype", func(n *node) string { return n.MediaType }},
	{"user.epochfs.data", func(n *node) string { return strconv.FormatInt(n.Map.DataSize(), 10) }},
	{"user.epochfs.cached", func(n *node) string { return strconv.FormatInt(n.Content.Cached(), 10) }},
}

// GetXAttr returns one value. If dest is too small, as when only the size is
// requested, it returns the size and ERANGE; go-fuse distinguishes the two
// cases.
func (t *tree) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := t.node(in.NodeId)
	if n == nil {
		return 0, fuse.ENODATA
	}
	for _, x := range xattrs {
		if x.name != name {
			continue
		}
		v := x.value(n)
		if v == "" {
			break
		}
		return fill(dest, v)
	}
	return 0, fuse.ENODATA
}

// ListXAttr returns the names, each terminated by a NUL.
func (t *tree) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := t.node(in.NodeId)
	if n == nil {
		return 0, fuse.OK // the directory has none
	}
	var names string
	for _, x := range xattrs {
		if x.value(n) != "" {
			names += x.name + "\x00"
		}
	}
	return fill(dest, names)
}

func fill(dest []byte, v string) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}
