package disk

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The locks of a file go with its descriptor although the file stays mapped:
// of a process that was killed the mappings may be left for long.
func TestLockGoesBeforeMapping(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(name, make([]byte, StateHeader), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flags, prot, share int }{
		{os.O_RDWR, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED},
		{os.O_RDONLY, unix.PROT_READ, unix.MAP_SHARED},
		{os.O_RDONLY, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE},
	} {
		kind := int16(unix.F_WRLCK)
		if c.flags == os.O_RDONLY {
			kind = unix.F_RDLCK
		}
		f, err := os.OpenFile(name, c.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := TryLock(f, kind, LockInUse, 1); !ok || err != nil {
			t.Fatal(ok, err)
		}
		mem, err := mapFile(f, StateHeader, c.prot, c.share)
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !lockedElsewhere(other, LockInUse, 1) {
			t.Error("not locked while it is open")
		}
		f.Close()
		if lockedElsewhere(other, LockInUse, 1) {
			t.Error("locked after it was closed")
		}
		other.Close()
		if err := unix.Munmap(mem); err != nil {
			t.Fatal(err)
		}
	}
}
