package main

import (
	"runtime"
	"runtime/debug"
)

const (
	// serveMemory is the collector's soft limit for the process of a mount:
	// with what the collector does not count, at most 200 MiB are resident
	// under full load.
	serveMemory = 144 << 20
	// serveGC trades some time for memory: most of it is reused buffers.
	serveGC = 50
	// standMemory is the memory above which a process that does little collects
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

// standLean has a process of a mount collect no garbage until there is much, and
// then as boundMemory has it: a collection costs more memory than it frees while a
// process stands by, or serves a mount that is hardly read from. The environment
// has precedence.
func standLean(getenv func(string) string) {
	if getenv("GOGC") != "" || getenv("GOMEMLIMIT") != "" {
		boundMemory(getenv)
		return
	}
	debug.SetMemoryLimit(standMemory)
	debug.SetGCPercent(-1)
	// The first collection finds this to be garbage.
	runtime.AddCleanup(new([64]byte), func(struct{}) { boundMemory(getenv) }, struct{}{})
}
