package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// site is where Go tests mount: a registry with the fixtures' snapshot,
// and a cache, a mountpoint and sockets of its own.
type site struct {
	t     *testing.T
	front *registrytest.Front
	dir   string // of everything
	mnt   string
	ref   string
	env   []string // for all commands
	as    []string // what runs them, where they are not run as they are
}

func newSite(t *testing.T) *site {
	t.Helper()
	if ok, _ := condition("fuse"); !ok {
		t.Skip("no FUSE on this machine")
	}
	front := startRegistry(t, "memory")
	s := &site{t: t, front: front, dir: t.TempDir(), ref: front.Host + "/vm"}
	s.mnt = filepath.Join(s.dir, "mnt")
	s.env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), "HOME="+s.dir,
		mounting.CacheDirEnv+"="+filepath.Join(s.dir, "cache"), control.DirEnv+"="+filepath.Join(s.dir, "run"))
	must(t, os.Mkdir(s.mnt, 0o700))
	s.run("epochfs", "push", "--input", "../../snapshot/testdata/cocoon-export.tar", s.ref)
	t.Cleanup(s.cleanUp)
	return s
}

// cleanUp takes away what a test left, and one that did not fail must have
// left nothing.
func (s *site) cleanUp() {
	for unix.Unmount(s.mnt, unix.MNT_DETACH) == nil {
		if !s.t.Failed() {
			s.t.Error("the mount was left behind")
		}
	}
	left := func() []int { return processesOn(filepath.Join(s.dir, "cache")) }
	if poll(func() bool { return len(left()) == 0 }) {
		return
	}
	for _, pid := range left() {
		s.t.Errorf("process %d does not end", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run returns what a command prints, and fails if that fails.
func (s *site) run(name string, args ...string) string {
	s.t.Helper()
	code, out, stderr := s.try(name, args...)
	if code != 0 {
		s.t.Fatalf("%s %q: exit code %d: %s", name, args, code, stderr)
	}
	return out
}

func (s *site) try(name string, args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	all := slices.Concat(s.as, []string{name}, args)
	cmd := exec.CommandContext(s.t.Context(), all[0], all[1:]...)
	var out, errOut strings.Builder
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, &out, &errOut
	return exitOf(cmd.Run()), out.String(), errOut.String()
}

// status is that of the one mount.
func (s *site) status() control.Mount {
	s.t.Helper()
	var all control.Status
	must(s.t, json.Unmarshal([]byte(s.run("epochfs", "status", "--json", s.mnt)), &all))
	return all.Mounts[0]
}

// eventually waits until it is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	if !poll(so) {
		t.Fatalf("%s: it did not come to that", what)
	}
}

// betweenRounds is how often readers read all of a mount: what they look for
// is there for longer, and they take much of a processor.
const betweenRounds = 100 * time.Millisecond

// liveReaders read all of a mount without end, and compare every byte: one
// opens each file anew, one has all of them open and has the kernel forget
// what it read.
type liveReaders struct {
	t      *testing.T
	held   []*os.File
	rounds [2]atomic.Int64
	end    chan struct{}
	done   sync.WaitGroup
	once   sync.Once
}

// expected is what the files of the mount are, but for the envelope.
func (s *site) expected() (want map[string]struct{ SHA256 string }) {
	s.t.Helper()
	raw, err := os.ReadFile("../../snapshot/testdata/expected.json")
	must(s.t, err)
	must(s.t, json.Unmarshal(raw, &want))
	return want
}

// readAlways starts readers, who fail the test on the first wrong byte or
// error. Stop waits for them.
func (s *site) readAlways() *liveReaders {
	s.t.Helper()
	l := &liveReaders{t: s.t, end: make(chan struct{})}
	content := map[string][]byte{}
	held := map[string]*os.File{}
	for name, w := range s.expected() {
		f, err := os.Open(filepath.Join(s.mnt, name))
		must(s.t, err)
		held[name], l.held = f, append(l.held, f)
		content[name], err = os.ReadFile(f.Name())
		must(s.t, err)
		if sum := sha256.Sum256(content[name]); hex.EncodeToString(sum[:]) != w.SHA256 {
			s.t.Fatalf("%s: wrong bytes from the start", name)
		}
	}
	anew := make([]byte, 1<<20)
	l.loop(0, func() error {
		for name, want := range content {
			if err := sameBytes(filepath.Join(s.mnt, name), want, anew); err != nil {
				return err
			}
		}
		return nil
	})
	again := make([]byte, 1<<20)
	l.loop(1, func() error {
		for name, f := range held {
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				return err
			}
			got := again[:min(len(content[name]), len(again))]
			if _, err := f.ReadAt(got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, content[name][:len(got)]) {
				return fmt.Errorf("%s, held open: wrong bytes", name)
			}
		}
		return nil
	})
	s.t.Cleanup(l.stop)
	return l
}

// sameBytes compares a file with what it should hold, in steps of buf.
func sameBytes(name string, want, buf []byte) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		n, err := io.ReadFull(f, buf)
		if n > len(want) || !bytes.Equal(buf[:n], want[:n]) {
			return fmt.Errorf("%s: wrong bytes", name)
		}
		want = want[n:]
		switch {
		case err == nil:
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return err
		case len(want) > 0:
			return fmt.Errorf("%s: %d bytes are missing", name, len(want))
		default:
			return nil
		}
	}
}

func (l *liveReaders) loop(i int, round func() error) {
	l.done.Go(func() {
		pause := time.NewTimer(0) // and leaves something for others to do
		defer pause.Stop()
		for {
			select {
			case <-l.end:
				return
			case <-pause.C:
			}
			pause.Reset(betweenRounds)
			if err := round(); err != nil {
				l.t.Error(err)
				return
			}
			l.rounds[i].Add(1)
		}
	})
}

// goOn returns when each of them has read everything from here on.
func (l *liveReaders) goOn() {
	l.t.Helper()
	for i := range l.rounds {
		from := l.rounds[i].Load()
		if !poll(func() bool { return l.t.Failed() || l.rounds[i].Load() > from+1 }) {
			l.t.Fatalf("reader %d does not go on", i)
		}
	}
}

// stop lets go of the mount.
func (l *liveReaders) stop() {
	l.once.Do(func() {
		close(l.end)
		l.done.Wait()
		for _, f := range l.held {
			f.Close()
		}
	})
}

// exits waits for the end of a process and returns its exit code.
func exits(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	return exitOf(cmd.Wait())
}

// What a caller has open beside the usual three is closed with it, although
// the mount stays.
func TestMountKeepsNothingOpen(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newSite(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command("epochfs", "mount", "--quiet", s.ref, s.mnt)
	cmd.Env, cmd.ExtraFiles = s.env, []*os.File{w}
	must(t, cmd.Run())
	w.Close()
	must(t, r.SetReadDeadline(time.Now().Add(patience)))
	if n, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
	s.run("epochfs", "umount", s.mnt)
}
