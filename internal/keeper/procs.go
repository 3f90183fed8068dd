package keeper

import (
	"os"
	"runtime"
	"slices"
	"strings"
)

// A Go process has memory and threads for each processor that it may run on:
// with two, 0.3 MB more than with one. Keepers, and workers that stand by, do
// little, so they start with one; a worker that is told to serve takes all. A
// user's GOMAXPROCS goes before that.
const (
	procsEnv = "GOMAXPROCS"
	// oneEnv marks a process that was given its GOMAXPROCS here.
	oneEnv = "EPOCHFS_ONE_PROCESSOR"
)

// oneProcessor returns what to add to an environment for that.
func oneProcessor(env []string) []string {
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, procsEnv+"=") }) {
		return nil
	}
	return []string{procsEnv + "=1", oneEnv + "=1"}
}

// allProcessors removes it.
func allProcessors(env []string) []string {
	if !slices.Contains(env, oneEnv+"=1") {
		return env
	}
	return slices.DeleteFunc(env, func(kv string) bool {
		return strings.HasPrefix(kv, procsEnv+"=") || strings.HasPrefix(kv, oneEnv+"=")
	})
}

// takeProcessors makes what this worker starts run on all processors.
func (l *Link) takeProcessors() {
	if l.one = os.Getenv(oneEnv) != ""; l.one {
		os.Unsetenv(procsEnv)
		os.Unsetenv(oneEnv)
	}
}

// runOnAll makes this worker run on all processors itself.
func (l *Link) runOnAll() {
	if l.one {
		runtime.SetDefaultGOMAXPROCS()
	}
}
