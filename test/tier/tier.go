// Package tier divides the tests between make check, make test and make race.
package tier

import (
	"os"
	"testing"
)

// Long skips a test under -short. what names the reason: the test takes more
// than a second, also under the race detector, or needs root, FUSE or a program
// that may be missing.
func Long(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skip(what + ": left out of make check, run by make test")
	}
}

// FullEnv is set by make race and make soak: campaigns run in full.
const FullEnv = "EPOCHFS_FULL_CAMPAIGNS"

// shorter is how many times shorter campaigns are in make test.
const shorter = 12

// Shorter returns by how much a campaign is to be shortened: 1 in make race and
// make soak.
func Shorter() int {
	if os.Getenv(FullEnv) != "" {
		return 1
	}
	return shorter
}
