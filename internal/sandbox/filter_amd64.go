package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// moreCalls are allowed on this architecture only.
var moreCalls = []uint32{unix.SYS_EPOLL_WAIT}
