package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// moreCalls are allowed on this architecture only.
var moreCalls []uint32
