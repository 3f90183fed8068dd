package main

import "runtime/debug"

const (
	// serveMemory is what the collector keeps the process of a mount to,
	// in general: with what it does not count, less than 200 MiB are
	// resident when readers and fetches are at their most.
	serveMemory = 144 << 20
	// serveGC trades a little time for memory: most of it is buffers that
	// are used again.
	serveGC = 50
)

// boundMemory makes the process of a mount a small neighbour of the VMs
// that stand on it. What the environment says goes before.
func boundMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(serveMemory)
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(serveGC)
	}
}
