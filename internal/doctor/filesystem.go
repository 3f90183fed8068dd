package doctor

import (
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// fileSystem is the file system of the cache's directory.
type fileSystem struct {
	kind    string // its usual name
	network bool   // other hosts, or other machines on this one, may have it mounted
}

// magics are the file systems that statfs identifies.
var magics = map[int64]fileSystem{
	unix.EXT4_SUPER_MAGIC:      {kind: "ext4"}, // or ext2, or ext3
	unix.XFS_SUPER_MAGIC:       {kind: "xfs"},
	unix.BTRFS_SUPER_MAGIC:     {kind: "btrfs"},
	unix.TMPFS_MAGIC:           {kind: "tmpfs"},
	unix.OVERLAYFS_SUPER_MAGIC: {kind: "overlayfs"},
	unix.F2FS_SUPER_MAGIC:      {kind: "f2fs"},
	0x2fc12fc1:                 {kind: "zfs"},
	unix.FUSE_SUPER_MAGIC:      {"fuse", true}, // served by any program
	unix.NFS_SUPER_MAGIC:       {"nfs", true},
	unix.SMB_SUPER_MAGIC:       {"smb", true},
	unix.CIFS_SUPER_MAGIC:      {"cifs", true},
	unix.SMB2_SUPER_MAGIC:      {"smb2", true},
	unix.V9FS_MAGIC:            {"9p", true},
	unix.AFS_SUPER_MAGIC:       {"afs", true},
	unix.AFS_FS_MAGIC:          {"afs", true},
	unix.CEPH_SUPER_MAGIC:      {"ceph", true},
	unix.CODA_SUPER_MAGIC:      {"coda", true},
	unix.NCP_SUPER_MAGIC:       {"ncp", true},
	0x0bd00bd0:                 {"lustre", true},
	0x19830326:                 {"beegfs", true},
	0x20030528:                 {"orangefs", true},
	0x47504653:                 {"gpfs", true},
	0x786f4256:                 {"vboxsf", true},
}

// fileSystemOf returns the file system of f. magic is from statfs.
func fileSystemOf(f *os.File, magic int64) fileSystem {
	return named(magic, mountType(f))
}

// named returns the file system with a magic whose mount has a type in
// mountinfo, such as fuse.sshfs, or "" if that is not known.
func named(magic int64, mounted string) fileSystem {
	on, known := magics[int64(uint32(magic))]
	switch {
	case mounted == "fuseblk":
		return fileSystem{kind: mounted} // on a disk of this machine, as ntfs-3g
	case magic == unix.FUSE_SUPER_MAGIC && mounted != "":
		on.kind = mounted
	case magic == unix.EXT4_SUPER_MAGIC && strings.HasPrefix(mounted, "ext"):
		on.kind = mounted
	case !known && mounted != "":
		on.kind = mounted
	case !known:
		on.kind = fmt.Sprintf("file system 0x%x", uint32(magic))
	}
	return on
}

// mountType returns the type of the mount that f is on, or "" if it cannot
// be found.
func mountType(f *os.File) string {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return ""
	}
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		mine := uint64(m.ID) == st.Mnt_id
		return !mine, mine
	})
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[0].FSType
}

// check warns of file systems that are unsuitable for a cache.
func (s fileSystem) check() []Check {
	switch {
	case s.kind == "tmpfs":
		return []Check{note("file system", "use a directory on a disk: --cache-dir", "the cache is in memory, and is lost when the machine restarts")}
	case s.network:
		return []Check{note("file system", "use a directory on a disk of this machine: --cache-dir",
			"the cache is on %s, a network file system: only one host may use this directory, as maps and locks are not coherent between hosts", s.kind)}
	}
	return nil
}
