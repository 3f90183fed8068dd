package main

import "runtime/debug"

const (
	// serveMemory is the collector's soft limit for the process of a mount:
	// with what the collector does not count, at most 200 MiB are resident
	// under full load.
	serveMemory = 144 << 20
	// serveGC trades some time for memory: most of it is reused buffers.
	serveGC = 50
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
