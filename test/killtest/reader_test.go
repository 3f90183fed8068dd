package killtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// tally is what a reader saw.
type tally struct {
	Rounds, Failed, Wrong int
	Last                  string        // of the failures
	Longest               time.Duration // that a round took
}

// source is a file of the mount, and what it should read as.
type source struct {
	path string
	want []byte
	rng  *rand.Rand
	hold []*os.File // open over several rounds
	got  []byte     // of whole, made once
}

// kinds are ways to read. Each opens and closes what it reads in every
// round.
var kinds = map[string]func(*source) error{
	"pread": (*source).pread, "mmap": (*source).mmap, "direct": (*source).direct,
	"whole": (*source).whole, "keep": (*source).keep, "guest": (*source).guest, "huge": (*source).huge, "loop": (*source).loop,
}

// restlessEnv has readers not rest between rounds, as they do in make test.
const restlessEnv = "EPOCHFS_TEST_RESTLESS"

// reader is the process that reads: round after round until its standard
// input ends, or once where the kind says so. Then it prints its tally.
func reader(kind, path, flat, seed string) int {
	debug.SetPanicOnFault(true) // SIGBUS
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		panic(err)
	}
	s := &source{path: path, rng: rand.New(rand.NewPCG(n, 2))}
	if s.want, err = os.ReadFile(flat); err != nil {
		panic(err)
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	// Readers that never rest leave no processor to what they read from.
	rest := time.Duration(0)
	if tier.Shorter() > 1 && os.Getenv(restlessEnv) == "" {
		rest = 5 * time.Millisecond
	}
	var t tally
	for ended := false; !ended; {
		t.round(s, kinds[kind])
		if kind == "guest" || kind == "huge" {
			break
		}
		select {
		case <-stop:
			ended = true
		case <-time.After(rest):
		}
	}
	for _, f := range s.hold {
		f.Close()
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		panic(err)
	}
	return 0
}

// errWrong says that bytes are not what they should be.
var errWrong = errors.New("wrong bytes")

func (t *tally) round(s *source, do func(*source) error) {
	began := time.Now()
	err := func() (err error) {
		defer func() {
			if v := recover(); v != nil {
				err = fmt.Errorf("fault: %v", v)
			}
		}()
		return do(s)
	}()
	t.Rounds++
	t.Longest = max(t.Longest, time.Since(began))
	switch {
	case errors.Is(err, errWrong):
		t.Wrong++
	case err != nil:
		t.Failed++
	}
	if err != nil {
		t.Last = err.Error()
	}
}

// check compares what was read at off.
func (s *source) check(got []byte, off int) error {
	if !bytes.Equal(got, s.want[off:off+len(got)]) {
		return fmt.Errorf("%d at %d: %w", len(got), off, errWrong)
	}
	return nil
}

func (s *source) open(flags int) (*os.File, error) { return os.OpenFile(s.path, os.O_RDONLY|flags, 0) }

// forget has the kernel drop its pages, so that the next reads come to the
// mount's process.
func forget(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

func (s *source) pread() error {
	f, err := s.open(0)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 4 {
		off := s.rng.IntN(len(s.want))
		buf := make([]byte, min(1+s.rng.IntN(128<<10), len(s.want)-off))
		if _, err := f.ReadAt(buf, int64(off)); err != nil {
			return err
		}
		if err := s.check(buf, off); err != nil {
			return err
		}
	}
	forget(f)
	return nil
}

func (s *source) mmap() error {
	f, err := s.open(0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, len(s.want), unix.PROT_READ, unix.MAP_SHARED)
	f.Close()
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	for range 8 {
		off := s.rng.IntN(len(s.want)) &^ 4095
		if err := s.check(mem[off:min(off+4096, len(mem))], off); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) direct() error {
	f, err := s.open(unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	for range 4 {
		off := s.rng.IntN(len(s.want)) &^ 4095
		n, err := f.ReadAt(buf, int64(off))
		if err != nil && (err != io.EOF || off+n != len(s.want)) {
			return err
		}
		if err := s.check(buf[:n], off); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) whole() error {
	f, err := s.open(0)
	if err != nil {
		return err
	}
	defer f.Close()
	if s.got == nil {
		s.got = make([]byte, len(s.want)+1) // one more, to see the end
	}
	clear(s.got)
	n := 0
	for n < len(s.got) && err == nil {
		var more int
		more, err = f.Read(s.got[n:min(n+256<<10, len(s.got))])
		n += more
	}
	if err != nil && err != io.EOF {
		return err
	}
	if n != len(s.want) {
		return fmt.Errorf("%d bytes of %d: %w", n, len(s.want), errWrong)
	}
	forget(f)
	return s.check(s.got[:n], 0)
}

// keep has some descriptors open over many rounds, and reads through all.
func (s *source) keep() error {
	f, err := s.open(0)
	if err != nil {
		return err
	}
	s.hold = append(s.hold, f)
	if i := s.rng.IntN(len(s.hold)); len(s.hold) > 4 || s.rng.IntN(10) == 0 {
		s.hold[i].Close()
		s.hold[i] = s.hold[len(s.hold)-1]
		s.hold = s.hold[:len(s.hold)-1]
	}
	for _, f := range s.hold {
		off := s.rng.IntN(len(s.want))
		buf := make([]byte, min(4096, len(s.want)-off))
		if _, err := f.ReadAt(buf, int64(off)); err != nil {
			return err
		}
		if err := s.check(buf, off); err != nil {
			return err
		}
	}
	forget(f)
	return nil
}

// loop reads a file in a file system on a loop device over a file of the
// mount, whose path is in the environment.
func (s *source) loop() error {
	if below, err := os.Open(os.Getenv("BELOW")); err == nil {
		forget(below)
		below.Close()
	}
	return s.whole()
}

// guest maps all of a file privately, as a hypervisor does, and touches
// every page in random order, some by writing.
func (s *source) guest() error { return s.touchAll(unix.MADV_RANDOM) }

// huge is guest with what hypervisors ask for: the kernel reads 2 MiB around a
// fault.
func (s *source) huge() error { return s.touchAll(unix.MADV_HUGEPAGE) }

func (s *source) touchAll(advice int) error {
	f, err := s.open(0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, len(s.want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	f.Close()
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	if err := unix.Madvise(mem, advice); err != nil {
		return err
	}
	for _, page := range s.rng.Perm((len(s.want) + 4095) / 4096) {
		off := page * 4096
		if page%7 == 0 {
			mem[off]++
			mem[off]--
		}
		if err := s.check(mem[off:min(off+4096, len(mem))], off); err != nil {
			return err
		}
	}
	return nil
}

// reading is a reader's process.
type reading struct {
	w     *world
	kind  string
	cmd   *exec.Cmd
	stdin io.Closer
	out   bytes.Buffer
}

// read starts a reader of a file of the mount.
func (w *world) read(kind, name string) *reading {
	return w.readAt(kind, w.path("mnt", name), w.path("flat", name))
}

func (w *world) readAt(kind, path, flat string) *reading {
	w.t.Helper()
	r := &reading{w: w, kind: kind + " " + filepath.Base(path)}
	r.cmd = exec.Command("/proc/self/exe", "reader", kind, path, flat, strconv.Itoa(rand.Int()))
	r.cmd.Env = append(slices.Clone(w.env), "BELOW="+w.path("mnt", "cow.raw"), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, os.Stderr
	stdin, err := r.cmd.StdinPipe()
	w.must(err)
	r.stdin = stdin
	w.must(r.cmd.Start())
	w.t.Cleanup(func() {
		if r.cmd.ProcessState == nil {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
	})
	return r
}

// finish waits for the reader to end, which it does by itself or because it
// is told to, and looks at what it saw.
func (r *reading) finish(tell bool) tally {
	t := r.w.t
	t.Helper()
	if tell {
		r.stdin.Close()
	}
	done := make(chan error, 1)
	go func() { done <- r.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%s: %v", r.kind, err)
		}
	case <-time.After(2 * patience):
		_ = r.cmd.Process.Kill()
		t.Fatalf("%s: the reader does not end", r.kind)
	}
	var got tally
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil {
		t.Fatalf("%s: %v: %q", r.kind, err, r.out.String())
	}
	if got.Failed > 0 || got.Wrong > 0 || got.Rounds == 0 {
		t.Errorf("%s: %+v", r.kind, got)
	}
	return got
}
