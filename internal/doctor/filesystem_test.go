package doctor

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNetworkFileSystems names the file systems on which a cache is for one
// host only, and no others.
func TestNetworkFileSystems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		magic         int64
		mounted, kind string
		network       bool
	}{
		{0x6969, "nfs4", "nfs", true},
		{0x517b, "smbfs", "smb", true},
		{0xff534d42, "cifs", "cifs", true},
		{0xfe534d42, "smb3", "smb2", true},
		{-11317950, "cifs", "cifs", true}, // as a 32-bit f_type is extended
		{0x01021997, "9p", "9p", true},
		{0x5346414f, "afs", "afs", true},
		{0x6b414653, "afs", "afs", true},
		{0x00c36400, "ceph", "ceph", true},
		{0x65735546, "fuse.sshfs", "fuse.sshfs", true},
		{0x65735546, "virtiofs", "virtiofs", true},
		{0x65735546, "", "fuse", true},
		{0x65735546, "fuseblk", "fuseblk", false},
		{0x0bd00bd0, "lustre", "lustre", true},
		{0xef53, "ext2", "ext2", false},
		{0xef53, "", "ext4", false},
		{0x58465342, "xfs", "xfs", false},
		{0x12345678, "new", "new", false},
		{0x12345678, "", "file system 0x12345678", false},
	} {
		got := named(c.magic, c.mounted)
		if got != (fileSystem{c.kind, c.network}) {
			t.Errorf("%x, %q: %+v", c.magic, c.mounted, got)
		}
		all := got.check()
		if c.network != (len(all) == 1) {
			t.Errorf("%s: %v", c.kind, all)
		} else if c.network && (all[0].Level != Note || all[0].Do == "" || !strings.Contains(all[0].Found, c.kind+",") || !strings.Contains(all[0].Found, "only one host")) {
			t.Errorf("%s: %+v", c.kind, all[0])
		}
	}
	if all := named(unix.TMPFS_MAGIC, "tmpfs").check(); len(all) != 1 || all[0].Level != Note {
		t.Errorf("tmpfs: %v", all)
	}
}

// TestFileSystemOf finds the type of a mount by a file on it.
func TestFileSystemOf(t *testing.T) {
	t.Parallel()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := fileSystemOf(f, 0x9fa0); got != (fileSystem{kind: "proc"}) {
		t.Errorf("%+v", got)
	}
}

// TestKeeping tells what is lacking for files to be kept.
func TestKeeping(t *testing.T) {
	t.Parallel()
	try := func(zeros bool, err error) []Check {
		return keeping("somefs", func() (bool, error) { return zeros, err })
	}
	if all := try(false, nil); len(all) != 0 {
		t.Errorf("with fallocate: %v", all)
	}
	if all := try(true, nil); len(all) != 1 || all[0].Level != OK || !strings.Contains(all[0].Found, "fallocate") {
		t.Errorf("without: %v", all)
	}
	if all := try(false, fmt.Errorf("lock: %w", unix.ENOLCK)); len(all) != 1 || all[0].Level != Note || !strings.Contains(all[0].Found, unix.ENOLCK.Error()) {
		t.Errorf("without locks: %v", all)
	}
	if all := checkKeeping(t.TempDir(), "this"); len(all) != 0 {
		t.Errorf("here: %v", all)
	}
}
