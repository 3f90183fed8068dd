// Package sandbox runs code that reads hostile bytes in a child process that
// can do nothing else: no files, no network, no other processes, bounded
// memory. The child is this program, started again with an empty environment
// and only two pipes.
//
// The package owns the process, its confinement and the frames on the pipes;
// callers define what the frames mean. It trusts nothing that comes from a
// child: frames are bounded, and every wait ends.
package sandbox

import (
	"errors"
	"fmt"
	"time"
)

// Level is the confinement of a child.
type Level uint8

// Levels of confinement.
const (
	Limits  Level = iota // resource limits alone
	Seccomp              // resource limits, and a list of allowed system calls
)

// String returns the level's name.
func (l Level) String() string {
	if l == Seccomp {
		return "resource limits and a system call filter"
	}
	return "resource limits alone"
}

const (
	// MaxFrame bounds the payload of a frame, in bytes.
	MaxFrame = 1<<20 + 64

	// Patience bounds the time until a child's next frame. The slowest
	// honest step, decompressing a block of 1 MiB on a busy machine, takes
	// less than a second.
	Patience = 30 * time.Second

	// Memory bounds the memory that a child maps for writing, in bytes. Go
	// maps its heap in steps of 64 MiB, so the heap's own limit is lower.
	Memory = 512 << 20

	heapLimit    = 320 << 20
	addressSpace = 4 << 30
	maxStack     = 64 << 20 // of one goroutine: ends an infinite recursion
)

// ErrMisbehaved is wrapped by every error that is a child's fault.
var ErrMisbehaved = errors.New("the process that reads the guest's bytes failed")

// misbehaved returns an ErrMisbehaved with its reason.
func misbehaved(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMisbehaved, fmt.Sprintf(format, args...))
}
