package doctor

import (
	"context"

	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// checkSandbox starts a process like those that read guests' disks.
func checkSandbox(ctx context.Context) Check {
	c, err := sandbox.Start(ctx, sandbox.Options{})
	if err != nil {
		return note("sandbox", "mount /proc, and allow more processes", "guests' disks cannot be read: %v", err)
	}
	c.Close()
	return confinement(c.Level)
}

func confinement(l sandbox.Level) Check {
	if l == sandbox.Seccomp {
		return ok("sandbox", "guests' disks are read in a process with %s", l)
	}
	return note("sandbox", "use Linux 4.14 or newer with seccomp on amd64 or arm64, and allow seccomp(2) in a container",
		"guests' disks are read in a process with %s: read only disks of guests that you trust", l)
}
