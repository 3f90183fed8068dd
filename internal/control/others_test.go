package control

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Another user's mounts are seen in that one's directory, and nothing is
// taken away there; a directory that is somebody else's is not looked into.
func TestListOf(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives directories away")
	}
	const uid, nobody = 54321, 54322
	t.Setenv("TMPDIR", t.TempDir())
	dir := tempDir(uid)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	listenOn(t, dir, "11.sock").Close()
	live := listenOn(t, dir, "12.sock")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := live.Accept()
			if err != nil {
				return
			}
			_ = json.NewEncoder(c).Encode(sample)
			c.Close()
		}
	}()
	defer func() { live.Close(); <-done }()
	for owner, want := range map[int]int{uid: 1, nobody: 0} {
		if err := os.Chown(dir, owner, owner); err != nil {
			t.Fatal(err)
		}
		if all := ListOf(uid); len(all) != want || want == 1 && all[0].Dir != sample.Dir {
			t.Errorf("of a directory of %d: %+v", owner, all)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "11.sock")); err != nil {
		t.Errorf("another user's dead socket: %v", err)
	}
}
