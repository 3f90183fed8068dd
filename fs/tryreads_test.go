package fs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// The kernel that runs the tests asks again for what is declined, and nothing
// is left of the test.
func TestTryDeclining(t *testing.T) {
	needFUSE(t)
	var err error
	for range 3 { // it is bounded in time, and the machine may be busy
		if err = tryDeclining(t.Context()); err == nil {
			break
		}
	}
	check(t, err)
	mounts, err := os.ReadFile("/proc/self/mounts")
	check(t, err)
	if bytes.Contains(mounts, []byte("epochfs-try")) {
		t.Error("the mount was left")
	}
}

// A reader that gets wrong bytes, or an error, makes the test fail.
func TestTryRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mapped")
	check(t, os.WriteFile(path, make([]byte, trySize), 0o600))
	if err := tryRead(path); !errors.Is(err, errTry) {
		t.Error(err)
	}
	if err := tryRead(path + "-not"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
