package doctor

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// caller describes the user who runs the program.
type caller struct {
	root      bool
	caps      uint64 // effective capabilities, by number
	namespace bool   // in a user namespace other than the machine's
}

func thisCaller() caller {
	c := caller{root: isRoot()}
	status, _ := os.ReadFile("/proc/self/status") // without it, capabilities count as missing
	if _, rest, ok := strings.Cut(string(status), "\nCapEff:"); ok {
		line, _, _ := strings.Cut(rest, "\n")
		c.caps, _ = strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	c.namespace = err == nil && strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295"
	return c
}

// capability is a Linux capability that something needs.
type capability struct {
	number int
	name   string
}

var (
	sysAdmin    = capability{unix.CAP_SYS_ADMIN, "SYS_ADMIN"}
	sysResource = capability{unix.CAP_SYS_RESOURCE, "SYS_RESOURCE"}
)

// give returns how root gets the capability.
func (c capability) give() string {
	return "give it CAP_" + c.name + ": in a container --cap-add " + c.name
}

func (c caller) has(want capability) bool { return c.caps&(1<<want.number) != 0 }

// get returns how the caller gets a capability. It counts only in the
// machine's own user namespace.
func (c caller) get(want capability) string {
	switch {
	case !c.root:
		return "mount as root"
	case c.namespace:
		return "mount as root of the machine: CAP_" + want.name + " of a user namespace (a rootless container) is not enough"
	case !c.has(want):
		return want.give()
	}
	return "allow it: something other than capabilities forbids it, such as seccomp or AppArmor (in a container --security-opt seccomp=unconfined or apparmor=unconfined)"
}

// privileges returns notes about what only root's mounts have, apart from
// passthrough. readahead and spared are the errors of changing the kernel's
// settings for them.
func (c caller) privileges(readahead, spared error) (all []Check) {
	if readahead != nil {
		do := "mount as root"
		if c.root {
			do = "make /sys writable: in a container use --privileged"
		}
		all = append(all, note("readahead", do, "the kernel's read-ahead for incomplete files stays at 128 KiB: it cannot be changed (%v)", readahead))
	}
	if spared != nil {
		do := c.get(sysResource)
		if errors.Is(spared, unix.EROFS) && c.root {
			do = "make /proc writable"
		}
		all = append(all, note("memory", do, "the kernel may kill the processes of a mount when memory is short (%v)", spared))
	}
	return all
}

// settable returns why the settings of block devices and mounts in a
// directory of /sys cannot be changed, or nil.
func settable(dir string) error {
	err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK, unix.AT_EACCESS)
	if err != nil {
		return &os.PathError{Op: "write", Path: dir, Err: err}
	}
	return nil
}
