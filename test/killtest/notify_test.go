package killtest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/mounts"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// soon bounds the time from the moment at which a mount can serve a reader
// to the moment at which the reader has its bytes.
const soon = 2 * time.Second

// lockedPage is a mount whose worker hangs in the kernel: it asked for pages
// to be dropped, and one of them is locked by a READ that nobody answers.
type lockedPage struct {
	*world
	front  *registrytest.Front
	ranges atomic.Bool // whether the registry serves them
	first  string      // digest of the first part
	lied   atomic.Bool // it was sent with a wrong bit, from its start to that of the page
	reader *exec.Cmd   // reads the locked page
	out    strings.Builder
	at     int // where that page begins
	worker int
	data   []byte
}

// lockPage makes such a mount. The registry ignores Range. The disk has two
// parts that share a page. The first is dropped, since its stream brings a
// wrong bit; the second is held back, and with it the READ of the page.
func lockPage(t *testing.T, flags ...string) *lockedPage {
	t.Helper()
	data := make([]byte, 33<<20+512+4096)
	rand.NewChaCha8([32]byte{9}).Read(data)
	border := len(data) - 4096
	disk := artifacttest.CloudImage("disk.qcow2", data[:border], data[border:])
	l := &lockedPage{data: data, at: border &^ 4095, first: digests.Of(data[:border])}
	whole := registrytest.NewHandler()
	front := registrytest.NewFront(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !l.ranges.Load() {
			r.Header.Del("Range")
		}
		if r.Method == "GET" && strings.Contains(r.URL.Path, l.first) && !l.lied.Load() {
			rw = &liar{ResponseWriter: rw, left: l.at, lied: &l.lied}
		}
		whole.ServeHTTP(rw, r)
	}))
	w := newWorld(t, front.Host, artifacttest.Options{})
	l.world, l.front = w, front
	if len(flags) > 0 {
		w.flags = flags
	}
	pushAs(t, front.Host, "vm", disk)
	w.mount()
	l.abortAtEnd()
	second := digests.Of(data[border:])
	front.Inject(&registrytest.Fault{Match: registrytest.Path(second), Delay: time.Hour})
	l.worker = w.serving(0)
	if own := l.openBelow(l.worker, w.path("mnt")); len(own) > 0 {
		t.Errorf("the worker has open on its own mount: %v", own)
	}
	l.reader = exec.Command("dd", "if="+w.path("mnt", "disk.qcow2"), "bs=4096", "count=1", "status=none", fmt.Sprint("skip=", l.at/4096))
	l.reader.Stdout = &l.out
	w.must(l.reader.Start())
	w.poll("the page's READ waits", func() bool { return len(w.status().Waiting) > 0 })
	w.poll("the worker hangs", func() bool { return hangsInNotify(l.worker) })
	return l
}

// liar changes the first byte of an answer. Requests that are broken off do not
// count: the next one is lied to as well.
type liar struct {
	http.ResponseWriter
	begun bool
	left  int // bytes until the lie was told
	lied  *atomic.Bool
}

// Write passes bytes on.
func (l *liar) Write(p []byte) (int, error) {
	if !l.begun && len(p) > 0 {
		l.begun = true
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	n, err := l.ResponseWriter.Write(p)
	if l.left -= n; l.left <= 0 {
		l.lied.Store(true)
	}
	return n, err
}

// abortAtEnd frees whoever hangs, should the test fail.
func (l *lockedPage) abortAtEnd() {
	kernel := l.kernel()
	l.t.Cleanup(func() {
		if l.t.Failed() {
			_ = os.WriteFile(filepath.Join(kernel, "abort"), []byte("1"), 0)
		}
		_ = l.reader.Process.Kill()
	})
}

// openBelow returns what a process has open in a directory, or runs in.
func (l *lockedPage) openBelow(pid int, dir string) (all []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range append(links, fmt.Sprintf("/proc/%d/cwd", pid)) {
		if to, _ := os.Readlink(link); to == dir || strings.HasPrefix(to, dir+"/") {
			all = append(all, to)
		}
	}
	return all
}

// hangsInNotify reports whether a thread of a process is in uninterruptible
// sleep in a write to the FUSE device.
func hangsInNotify(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, task := range tasks {
		stat, _ := os.ReadFile(task + "/stat")
		call, ok := deviceCall(task)
		if ok && call != unix.SYS_READ && strings.Contains(string(stat), ") D ") {
			return true
		}
	}
	return false
}

// deviceCall returns the number of the system call on the FUSE device that a
// thread waits in. ok is false if it waits in none.
func deviceCall(task string) (number int, ok bool) {
	call, _ := os.ReadFile(task + "/syscall")
	var fd int
	if _, err := fmt.Sscanf(string(call), "%d 0x%x", &number, &fd); err != nil {
		return 0, false
	}
	to, _ := os.Readlink(fmt.Sprintf("%s/fd/%d", task, fd))
	return number, to == "/dev/fuse"
}

// readersServed fails unless the reader of the page has right bytes soon
// after the source answers.
func (l *lockedPage) readersServed() {
	l.t.Helper()
	l.ranges.Store(true)
	l.front.Clear()
	done := make(chan error, 1)
	go func() { done <- l.reader.Wait() }()
	select {
	case err := <-done:
		if want := string(l.data[l.at : l.at+4096]); err != nil || l.out.String() != want {
			l.t.Errorf("wrong bytes, %v", err)
		}
	case <-time.After(soon):
		l.t.Fatal("the reader still waits")
	}
	l.poll("the killed process is gone", func() bool { return unix.Kill(l.worker, 0) == unix.ESRCH })
	all, err := os.ReadFile(l.path("mnt", "disk.qcow2"))
	if err != nil || string(all) != string(l.data) {
		l.t.Errorf("wrong bytes of the file, %v", err)
	}
	l.unmount()
}

// A worker that is killed while it waits in the kernel for a page that is
// locked is followed by another at once: that one answers the READ which has
// locked the page.
func TestKilledInNotification(t *testing.T) {
	t.Parallel()
	l := lockPage(t)
	l.signal(l.worker, unix.SIGKILL)
	l.serving(l.worker)
	l.readersServed()
}

// If keeper and worker are killed in that moment, nobody is left who could
// answer the READ: umount ends the connection, and all who wait for it.
func TestUmountWhatWasAbandoned(t *testing.T) {
	for _, how := range []string{"mounted", "detached"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			l := lockPage(t)
			l.signal(l.keeper, unix.SIGKILL)
			first := l.keeper
			l.poll("the keeper is gone", func() bool { return dead(first) })
			for _, pid := range l.processes() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			l.must(l.reader.Process.Kill())
			done := make(chan error, 2)
			if how == "detached" { // hangs
				go func() { done <- exec.Command("umount", "-l", l.path("mnt")).Run() }()
				l.poll("the mount is detached", func() bool {
					m, err := mounts.Find(l.path("mnt"))
					return err == nil && m == nil
				})
				_, _ = l.run("umount", l.path("mnt")) // fails: nothing is there
			} else {
				go func() {
					_, err := l.run("umount", "--lazy", l.path("mnt"))
					done <- err
				}()
			}
			select {
			case err := <-done:
				l.must(err)
			case <-time.After(patience):
				t.Fatal("umount hangs")
			}
			_ = l.reader.Wait()
			l.poll("the killed processes are gone", func() bool { return len(l.processes()) == 0 && dead(l.worker) })
		})
	}
}

// A worker that hangs so, is not the keeper's child, and is killed by the keeper
// to have another binary take over, is followed at once as well.
func TestRestartInNotification(t *testing.T) {
	t.Parallel()
	l := lockPage(t)
	l.signal(l.keeper, unix.SIGKILL)
	first := l.keeper
	l.poll("the keeper is gone", func() bool { return dead(first) })
	l.poll("another keeper keeps it", func() bool { // when the worker has seen the end of the first
		_, err := l.run("restart", l.path("mnt"))
		return err == nil
	})
	m, err := l.kept()
	l.must(err)
	if m.Worker == 0 || m.Worker == l.worker || m.Keeper == first {
		t.Errorf("%+v after process %d under %d", m, l.worker, first)
	}
	l.readersServed()
}
