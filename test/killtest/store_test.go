package killtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// A worker that is killed while a store of the replay waits for a page that is
// locked by a READ which the worker has not seen, is followed by another at
// once. That one answers the READ, and goes on with the replay.
func TestKilledInStore(t *testing.T) {
	t.Parallel()
	const size, page = 4 << 20, 300
	front := inMemory(t)
	f := dense(newRand(t), "memory-ranges", size)
	pages := make([]int64, size/4096)
	for i := range pages {
		pages[i] = int64(i)
	}
	w := newWorld(t, front.Host, artifacttest.Options{Piece: 256 << 10}, f)
	w.flags = setFile(t, "memory-ranges", size, pages)
	front.Inject(&registrytest.Fault{Match: registrytest.Path(digests.Of(f.Data)), Delay: time.Hour})
	w.mount()
	kernel := w.kernel()
	t.Cleanup(func() {
		if t.Failed() { // free whoever hangs
			_ = os.WriteFile(filepath.Join(kernel, "abort"), []byte("1"), 0)
		}
	})

	// The shell opens the file, and reads a page of it when it is told to.
	reader := exec.Command("sh", "-c", fmt.Sprintf("exec 3<'%s'; read go; exec dd bs=4096 skip=%d count=1 status=none <&3", w.path("mnt", "memory-ranges"), page))
	var out strings.Builder
	reader.Stdout = &out
	tell, err := reader.StdinPipe()
	w.must(err)
	w.must(reader.Start())
	w.poll("the file is open", func() bool { return w.opened() == 1 })
	worker := w.serving(0)
	w.holdReaders(worker)
	_, err = tell.Write([]byte("\n"))
	w.must(err)
	w.requestWaits(kernel)
	front.Clear()
	w.poll("a store hangs", func() bool { return hangsInNotify(worker) })
	w.signal(worker, unix.SIGKILL)
	w.serving(worker)
	w.must(reader.Wait())
	if out.String() != string(f.Data[page*4096:(page+1)*4096]) {
		t.Error("wrong bytes")
	}
	w.poll("the replay has ended", func() bool { return w.local() == size })
	w.readAll()
	w.unmount()
}

// holdReaders stops the threads of a process that wait for requests from the
// kernel. They stay so until they are killed, or the test ends.
func (w *world) holdReaders(pid int) {
	w.t.Helper()
	held, end := make(chan error), make(chan struct{})
	w.t.Cleanup(func() { close(end) })
	go func() {
		runtime.LockOSThread() // for good: whom a thread traces is free when it ends
		held <- traceReaders(pid)
		<-end
	}()
	err := <-held
	if errors.Is(err, unix.EPERM) {
		w.t.Skip("threads cannot be stopped here: ", err)
	}
	w.must(err)
}

// traceReaders stops them, as a debugger does.
func traceReaders(pid int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return err
	}
	found := 0
	for _, task := range tasks {
		if call, ok := deviceCall(task); !ok || call != unix.SYS_READ {
			continue
		}
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			return err
		}
		if err := unix.PtraceSeize(tid); err != nil {
			return err
		}
		if err := unix.PtraceInterrupt(tid); err != nil {
			return err
		}
		if _, err := unix.Wait4(tid, nil, unix.WALL, nil); err != nil {
			return err
		}
		found++
	}
	if found == 0 {
		return fmt.Errorf("no thread of process %d waits for requests", pid)
	}
	return nil
}
