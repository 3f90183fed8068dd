// Package crashpoint lets a test kill the process at a named step, as kill
// -9 would. Without the environment variable it does nothing.
package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Env names the environment variable with the step to die at: NAME:N is the
// Nth time that step NAME is reached, and *:N the Nth step of any name. With
// "panic " before it, the process panics there.
const Env = "EPOCHFS_CRASH_AT"

var (
	name   string
	left   atomic.Int64
	on     bool
	panics bool
)

func init() {
	text, isPanic := strings.CutPrefix(os.Getenv(Env), "panic ")
	at, n, ok := strings.Cut(text, ":")
	count, err := strconv.ParseInt(n, 10, 64)
	if !ok || err != nil {
		return
	}
	name, on, panics = at, true, isPanic
	left.Store(count)
}

// Reach marks a step. The process dies here if Env names it.
func Reach(step string) {
	if on && (name == "*" || name == step) && left.Add(-1) == 0 {
		if panics {
			panic("crash point: " + step)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
}
