package fs

import (
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// xattrs are the extended attributes of a file, in the order listed. A
// value of "" means that this file has no such attribute.
var xattrs = []struct {
	name  string
	value func(*node) string
}{
	{"user.epochfs.digest", func(n *node) string { return n.Digest }},
	{"user.epochfs.mediatype", func(n *node) string { return n.MediaType }},
	{"user.epochfs.data", func(n *node) string { return strconv.FormatInt(n.Map.DataSize(), 10) }},
	{"user.epochfs.cached", func(n *node) string { return strconv.FormatInt(n.Content.Cached(), 10) }},
}

// GetXAttr gives one value. A dest that is too small, as it is when only
// the size is asked for, is answered with the size and ERANGE; go-fuse
// knows which of the two it was.
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

// ListXAttr gives the names, each with a NUL after it.
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
