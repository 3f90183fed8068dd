package main

import "runtime/debug"

const (
	// serveMemory is the collector's soft limit for the process of a mount:
	// with what the collector does not count, at most 200 MiB are resident
	// under full load.
	serveMemory = 144 << 20
	// serveGC trades some time for memory: most of it is reused buffers.
	serveGC = 50
	// standMemory is the memory above which a process that stands by collects
	// garbage.
	standMemory = 32 << 20
)

// boundMemory limits the memory of a mount's process, for the sake of the
// VMs beside it. The environment has precedence.
func boundMemory(getenv func(string) string) {
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(serveMemory)
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(serveGC)
	}
}

// standLean has a process that waits for another one's end collect no garbage
// unless there is much: a collection costs it more memory than it frees. boundMemory
// ends that. The environment has precedence.
func standLean(getenv func(string) string) {
	if getenv("GOGC") == "" && getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(standMemory)
		debug.SetGCPercent(-1)
	}
}
