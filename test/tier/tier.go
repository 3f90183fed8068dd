// Package tier keeps what takes long, or needs more than Go, out of make
// check.
package tier

import "testing"

// Long skips a test under -short. The test does what is named, which takes
// more than a second, or needs root, FUSE or a program that is not there
// everywhere.
func Long(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skip(what + ": left out of make check, run by make test")
	}
}
