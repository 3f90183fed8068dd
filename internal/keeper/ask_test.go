package keeper

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Who asks while a socket is being made must not take it for a dead
// process's.
func TestAskedAtOnce(t *testing.T) {
	dir := t.TempDir()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = List(dir)
			}
		}
	}()
	for range 300 {
		socket, name, err := listenAt(dir, keeperSuffix)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(name); err != nil {
			t.Error(err)
		}
		os.Remove(name) // first, or the next one of this name may be taken for this one, which is dead
		unix.Close(socket)
		if t.Failed() {
			break
		}
	}
	close(stop)
	<-stopped
}
