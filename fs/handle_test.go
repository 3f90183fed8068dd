package fs

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// helpHandle prints the handles of files, as an NFS server would send them
// to its clients.
func helpHandle(args []string) error {
	for _, path := range args {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		if err != nil {
			return err
		}
		fmt.Println(h.Type(), hex.EncodeToString(h.Bytes()))
	}
	return nil
}

// helpByHandle opens handles below a directory of the mount and prints what
// is there: a file's bytes or a directory's names.
func helpByHandle(args []string) error {
	dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	for _, line := range args[1:] {
		var kind int32
		var text string
		if _, err := fmt.Sscan(line, &kind, &text); err != nil {
			return err
		}
		b, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		fd, err := unix.OpenByHandleAt(dir, unix.NewFileHandle(kind, b), unix.O_RDONLY)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "handle")
		if names, err := f.Readdirnames(-1); err == nil {
			fmt.Println(names)
			continue
		}
		got := make([]byte, 100)
		n, err := f.Read(got)
		fmt.Printf("%s\n", got[:n])
		if err != nil {
			return err
		}
	}
	return nil
}

// What has a handle of a file finds it again when the kernel has forgotten
// the inode.
func TestHandlesOutliveTheKernelsMemory(t *testing.T) {
	needRoot(t)
	m := mounted(t, []File{textFile("a", "hello"), textFile("b", "world")}, Options{})
	handles := strings.Split(strings.TrimSpace(help(t, "handle", filepath.Join(m.Dir(), "a"), filepath.Join(m.Dir(), "b"), m.Dir())), "\n")
	dropInodes(t)
	// The directory last: reading it makes the files known again.
	if got := help(t, append([]string{"byhandle", m.Dir()}, handles...)...); got != "hello\nworld\n[a b]\n" {
		t.Errorf("by handles: %q", got)
	}
	kind, text, _ := strings.Cut(handles[0], " ")
	b, err := hex.DecodeString(text)
	check(t, err)
	b[0] = 77 // no such inode
	out, _ := helperCmd("byhandle", m.Dir(), kind+" "+hex.EncodeToString(b)).Output()
	if string(out) != "error: ESTALE\n" {
		t.Errorf("a handle of no file: %q", out)
	}
}

// dropInodes has the kernel forget the inodes that nobody uses.
func dropInodes(t *testing.T) {
	t.Helper()
	check(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
}

func TestLookupsOfHandles(t *testing.T) {
	tr, _ := testTree(t, BytesContent(nil), BytesContent(nil))
	for _, c := range []struct {
		ino  uint64
		name string
		want uint64
		err  fuse.Status
	}{
		{rootIno, ".", rootIno, fuse.OK},
		{rootIno, "..", rootIno, fuse.OK},
		{firstIno, ".", firstIno, fuse.OK},
		{firstIno + 1, ".", firstIno + 1, fuse.OK},
		{firstIno, "..", rootIno, fuse.OK},
		{firstIno, "x", 0, fuse.ENOTDIR},
		{firstIno + 2, ".", 0, fuse.ENOENT},
		{0, "..", 0, fuse.ENOENT},
		{1 << 63, ".", 0, fuse.ENOENT},
	} {
		var out fuse.EntryOut
		status := tr.Lookup(nil, &fuse.InHeader{NodeId: c.ino}, c.name, &out)
		if status != c.err || out.NodeId != c.want || out.Ino != c.want {
			t.Errorf("%q of %d: %v, inode %d with attributes of %d", c.name, c.ino, status, out.NodeId, out.Ino)
		}
		if out.NodeId == rootIno && out.Generation != 0 { // the kernel warns of another
			t.Errorf("the root has generation %d", out.Generation)
		}
	}
}
