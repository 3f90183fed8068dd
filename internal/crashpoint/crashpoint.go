// Package crashpoint lets a test kill the process at a named step, as
// kill -9 would. Without the environment variable it does nothing.
package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Env names the variable that says where to die: NAME:N is the Nth time
// that step NAME is reached, and *:N the Nth step of any name.
const Env = "EPOCHFS_CRASH_AT"

var (
	name string
	left atomic.Int64
	on   bool
)

func init() {
	at, n, ok := strings.Cut(os.Getenv(Env), ":")
	count, err := strconv.ParseInt(n, 10, 64)
	if !ok || err != nil {
		return
	}
	name, on = at, true
	left.Store(count)
}

// Reach says that the process has come to a step.
func Reach(step string) {
	if on && (name == "*" || name == step) && left.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
}
