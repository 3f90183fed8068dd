package doctor

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/keeper"
)

const (
	device      = "/dev/fuse"
	helper      = "fusermount3"
	fuseConf    = "/etc/fuse.conf"
	mountHelper = "/sbin/mount.fuse.epochfs"
	getHelper   = "apt-get install fuse3"
	getDevice   = "modprobe fuse; in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
)

// checkFUSE mounts and unmounts a file system. backing is a file in the
// cache's directory, or nil.
func checkFUSE(backing *os.File) []Check {
	dir, err := os.MkdirTemp("", "epochfs-doctor-")
	if err != nil {
		return []Check{problem("fuse", "set TMPDIR to a directory that can be written to", err)}
	}
	defer func() { _ = os.Remove(dir) }() // empty, unless the unmount failed
	if backing == nil {
		if backing, err = os.CreateTemp("", "epochfs-doctor-"); err != nil {
			return []Check{problem("fuse", "set TMPDIR to a directory that can be written to", err)}
		}
		defer backing.Close()
		defer os.Remove(backing.Name())
	}
	s, err := fs.Probe(dir, backing)
	if err != nil {
		return []Check{problem("fuse", thisCaller().mendFUSE(), &withKind{err, fs.ErrNoFUSE})}
	}
	var name unix.Utsname
	_ = unix.Uname(&name) // fails for a bad address only
	who := "root"
	if !isRoot() {
		who = "a plain user, with " + helper
	}
	all := []Check{ok("fuse", "mounted and unmounted as %s (kernel %s, FUSE %s)", who, unix.ByteSliceToString(name.Release[:]), s.Protocol)}
	c := thisCaller()
	all = append(all, c.passthrough(s.Passthrough), takeover(s.Resend))
	return append(all, c.privileges(settable("/sys/class/bdi"), keeper.SpareFromOOM())...)
}

// mendFUSE returns what to do if a mount cannot be made.
func (c caller) mendFUSE() string {
	if _, err := os.Stat(device); err != nil {
		return getDevice
	}
	path, err := exec.LookPath(helper)
	switch info, statErr := os.Stat(path); {
	case c.root && !c.has(sysAdmin): // a user namespace's root has it
		return sysAdmin.give() + " --device /dev/fuse"
	case c.root:
		return "allow it: something other than capabilities forbids mounts, such as AppArmor (in a container --security-opt apparmor=unconfined) or a user namespace that may not use " + device
	case err != nil:
		return getHelper
	case unix.Access(device, unix.R_OK|unix.W_OK) != nil:
		return "chmod 0666 " + device
	case statErr == nil && info.Mode()&os.ModeSetuid == 0:
		return "chown root " + path + " && chmod u+s " + path
	}
	return "try it as root"
}

func (c caller) passthrough(err error) Check {
	const name, without = "passthrough", "reads of complete files go through the mount's process, at some GB/s"
	switch {
	case err == nil:
		return ok(name, "available: the kernel itself reads files that are complete and verified")
	case errors.Is(err, fs.ErrNotOffered):
		return note(name, "use Linux 6.9 or newer, with CONFIG_FUSE_PASSTHROUGH", "not available, the kernel lacks it: %s", without)
	case errors.Is(err, unix.EPERM):
		return note(name, c.get(sysAdmin), "not available, only root of the machine (CAP_SYS_ADMIN) may hand files to the kernel: %s", without)
	}
	return note(name, "put the cache on ext4, xfs or btrfs: --cache-dir", "not available for files of the cache's file system (%v): %s", err, without)
}

func takeover(resend bool) Check {
	if resend {
		return ok("takeover", "available: another process can take over a mount")
	}
	return note("takeover", "use Linux 6.9 or newer", "not available, the kernel cannot repeat requests: a mount ends with its process")
}

// checkHelpers checks the programs that only some users, or mount(8), need.
func checkHelpers() []Check {
	var all []Check
	if path, err := exec.LookPath(helper); err == nil {
		all = append(all, ok(helper, "%s: users other than root can mount", path))
	} else {
		all = append(all, note(helper, getHelper, "missing: users other than root cannot mount"))
	}
	if allowsOthers() {
		all = append(all, ok("allow-other", "every user may open a mount to other users"))
	} else {
		all = append(all, note("allow-other", "echo user_allow_other >>"+fuseConf, "only root may open a mount to other users"))
	}
	if _, err := os.Stat(mountHelper); err == nil {
		return append(all, ok("mount(8)", "%s: mount -t fuse.epochfs and fstab work", mountHelper))
	}
	self, err := os.Executable()
	if err != nil {
		self = "/usr/local/bin/epochfs"
	}
	return append(all, note("mount(8)", "ln -s "+self+" "+mountHelper, "%s is missing: mount -t fuse.epochfs and fstab do not work", mountHelper))
}

func allowsOthers() bool {
	f, err := os.Open(fuseConf)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}
