package cache

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/test/faultdisk"
	"github.com/cocoonstack/epochfs/test/tier"
)

// diskQuota lets the scenario keep three of its four files.
const diskQuota = 6 << 20

// diskFiles are the same in every process: they come from one seed. The
// last one has a part of the second.
func diskFiles(t testing.TB) (*fakeSource, []artifact) {
	rng := rand.New(rand.NewPCG(8, 8))
	src := &fakeSource{}
	var files []artifact
	for _, k := range []kind{kinds[0], kinds[2], kinds[1], kinds[3]} {
		files = append(files, makeFile(t, rng, src, k, 1<<20+150_000))
	}
	shared := files[1]
	m, flat := spread(t, rng, shared.data)
	f := *shared.file
	f.Map = m
	return src, append(files, artifact{&f, flat, shared.data})
}

// diskScenario is a cache's life in one process: it writes to out what was
// kept, and returns what a reader would have seen go wrong. What a disk
// refuses may fail a command, and is written to out too.
type diskScenario struct {
	dir   string
	src   *fakeSource
	files []artifact
	out   io.Writer
}

func (s *diskScenario) run() error {
	if err := s.session(func(c *Cache) error {
		for i := range 2 {
			if err := s.read(c, i, 1); err != nil {
				return err
			}
		}
		s.small(c)
		return s.read(c, 2, 0.4)
	}); err != nil {
		return err
	}
	return s.session(func(c *Cache) error {
		s.forget()
		s.small(c)
		for _, i := range []int{2, 1, 4} { // goes on, is there, is copied
			if err := s.read(c, i, 1); err != nil {
				return err
			}
		}
		_, err := c.Verify(context.Background(), func(int64) {})
		s.told("verify", err)
		_, err = c.Prune(context.Background(), PruneOptions{To: 3 << 20})
		s.told("prune", err)
		s.forget()
		if err := s.read(c, 3, 1); err != nil { // needs room
			return err
		}
		s.forget()
		return s.read(c, 0, 1)
	})
}

// forget takes back what was said of files: nothing is promised of them
// once others need their room.
func (s *diskScenario) forget() {
	for i := range s.files {
		fmt.Fprintf(s.out, "kept %d 0\n", i)
	}
}

// session opens the cache. A disk that does not give it must say so.
func (s *diskScenario) session(do func(c *Cache) error) error {
	c, err := Open(s.dir, Options{Size: diskQuota, Concurrency: 1, grace: time.Minute})
	if err != nil {
		s.told("open", err)
		return nil
	}
	c.pace.patient()
	return errors.Join(do(c), c.Close())
}

// told writes down that a command failed, for the disk's sake.
func (s *diskScenario) told(what string, err error) {
	if err != nil {
		fmt.Fprintf(s.out, "told %s: %q\n", what, err)
	}
}

// small keeps manifests and references, and reads them.
func (s *diskScenario) small(c *Cache) {
	text := []byte("manifest")
	digest := s.src.put(text)
	s.told("blob", c.PutBlob(digest, text))
	s.told("ref", c.PutRef("host/vm:latest", digest))
	if b, err := c.Blob(digest); err != nil || !bytes.Equal(b, text) {
		s.told("read blob", fmt.Errorf("%q, %w", b, err))
	}
}

// read reads the first share of a file, and waits until it is sealed if
// that was all of it, as far as the disk lets it be.
func (s *diskScenario) read(c *Cache, i int, share float64) error {
	a := s.files[i]
	h, err := c.File(a.file, s.src)
	if err != nil {
		return fmt.Errorf("open file %d: %w", i, err)
	}
	defer h.Close()
	p := make([]byte, int(share*float64(len(a.flat))))
	for at := 0; at < len(p); at += 200_000 {
		part := p[at:min(at+200_000, len(p))]
		if _, err := h.ReadAt(context.Background(), part, int64(at)); err != nil {
			return fmt.Errorf("read file %d at %d: %w", i, at, err)
		}
	}
	if !bytes.Equal(p, a.flat[:len(p)]) {
		return fmt.Errorf("file %d: wrong bytes", i)
	}
	for range 30 {
		if _, ok := h.Backing(); ok || share < 1 || !h.Complete() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Fprintf(s.out, "kept %d %d\n", i, h.Cached())
	return nil
}

// watchedProcess runs the scenario in each directory that it is told.
func watchedProcess() {
	if err := faultdisk.Enter(); err != nil {
		os.Exit(1)
	}
	src, files := diskFiles(&quiet{})
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		s := diskScenario{in.Text(), src, files, os.Stdout}
		err := s.run()
		_, n := src.reset()
		fmt.Printf("fetched %d\ndone %v\n", n, err)
	}
}

// watched is such a process, seen from the test.
type watched struct {
	disk    *faultdisk.Disk
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
}

func startWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{cmd: exec.Command(os.Args[0])}
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = os.Stderr
	w.answers = bufio.NewReader(out)
	w.disk, err = faultdisk.Start(w.cmd)
	if errors.Is(err, faultdisk.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	return w
}

func (w *watched) end() {
	_ = w.in.Close()
	_ = w.cmd.Wait()
	w.disk.Wait()
}

// run has the scenario run in a directory.
func (w *watched) run(t *testing.T, dir string) outcome {
	t.Helper()
	o := outcome{kept: map[int]int64{}}
	if _, err := io.WriteString(w.in, dir+"\n"); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := w.answers.ReadString('\n')
		if err != nil {
			return o
		}
		line = strings.TrimSuffix(line, "\n")
		var i int
		var n int64
		if k, _ := fmt.Sscanf(line, "kept %d %d", &i, &n); k == 2 {
			o.kept[i] = n
		} else if k, _ := fmt.Sscanf(line, "fetched %d", &n); k == 1 {
			o.fetched = n
		} else if what, ok := strings.CutPrefix(line, "told "); ok {
			o.told = append(o.told, what)
		} else if end, ok := strings.CutPrefix(line, "done "); ok {
			o.end = end
			return o
		} else {
			t.Fatalf("answer %q", line)
		}
	}
}

// diskDir is a directory for one run: in memory where that can be, since a
// thousand runs sync tens of thousands of times.
func diskDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "epochfs-disk-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// sweep is the scenario run again and again, with a fault at the first call
// that may have one, at the second, and so on, until a run passes without.
type sweep struct {
	may   func(faultdisk.Call) bool
	fault func(at int) faultdisk.Action
	later func(faultdisk.Call) faultdisk.Action // what becomes of the calls that follow; nil: nothing
	lacks func(faultdisk.Call) faultdisk.Action // what the file system cannot do in any run; nil: nothing
	every int                                   // of the calls that may, each so many-th, from a random one on
	least int                                   // runs that there must be
}

func (s sweep) run(t *testing.T) {
	t.Parallel()
	src, files := diskFiles(t)
	w := startWatched(t)
	var all wants
	runs := 0
	first := 1 + rand.IntN(s.every)
	t.Logf("faults at call %d and every %d from there", first, s.every)
	for at, next := 0, first; ; at, next = next, next+s.every { // 0: no fault
		dir := diskDir(t)
		seen := 0
		var hit faultdisk.Call
		w.disk.Watch(dir, func(c faultdisk.Call) faultdisk.Action {
			if s.lacks != nil {
				if a := s.lacks(c); a != (faultdisk.Action{}) {
					return a
				}
			}
			switch {
			case hit.N > 0 && s.later != nil:
				return s.later(c)
			case hit.N > 0 || at == 0 || !s.may(c):
				return faultdisk.Action{}
			}
			if seen++; seen < at {
				return faultdisk.Action{}
			}
			hit = c
			return s.fault(at)
		})
		o := w.run(t, dir)
		w.disk.Watch("/nowhere", nil)
		if at == 0 {
			all = o.wants(t, dir, src, files)
		} else if hit.N == 0 {
			break
		}
		runs++
		name := fmt.Sprintf("fault %d, at call %d, %s of %s", at, hit.N, hit.Name, strings.TrimPrefix(hit.Path, dir))
		if o.end == "" {
			w = startWatched(t)
		}
		// A file that could not be kept is fetched for each of its readers.
		if most := all.fetched + 2*int64(len(files[0].data)); o.fetched > most && s.later == nil {
			t.Errorf("%s: %d bytes fetched, without a fault %d", name, o.fetched, all.fetched)
		}
		all.check(t, name, o, dir, src, files, hit)
		_ = os.RemoveAll(dir)
	}
	t.Logf("%d runs", runs)
	if runs < s.least {
		t.Errorf("%d runs are too few to have been everywhere", runs)
	}
}

// outcome is what a run of the scenario came to.
type outcome struct {
	kept    map[int]int64 // of each file, when it was last read
	told    []string      // commands that failed
	fetched int64
	end     string // what a reader saw, "<nil>", or "" for a process that died
}

// wants is what a run without a fault came to.
type wants struct {
	outcome
	there map[int]bool // files that are in the cache at the end
}

func (o outcome) wants(t *testing.T, dir string, src *fakeSource, files []artifact) wants {
	w := wants{o, map[int]bool{}}
	if len(o.told) > 0 || o.end != "<nil>" {
		t.Fatalf("without a fault: %q, %s", o.told, o.end)
	}
	for i, a := range files {
		_, err := os.Stat(filepath.Join(dir, disk.Files, a.file.Key()+".data"))
		w.there[i] = err == nil
	}
	return w
}

// check looks at what a run came to, and at what it left.
func (w wants) check(t *testing.T, name string, o outcome, dir string, src *fakeSource, files []artifact, hit faultdisk.Call) {
	t.Helper()
	if o.end != "<nil>" && o.end != "" {
		t.Errorf("%s: a reader saw: %s", name, o.end)
	}
	c, err := Open(dir, Options{Size: 1 << 30, grace: time.Minute})
	if err != nil {
		t.Errorf("%s: the next open: %v", name, err)
		return
	}
	c.pace.patient()
	defer c.Close()
	src.reset()
	for i, a := range files {
		h, err := c.File(a.file, src)
		if err != nil {
			t.Errorf("%s: file %d: %v", name, i, err)
			continue
		}
		left := h.Cached()
		lost := hit.Name == "fdatasync" && hit.Path == h.entry.disk.Data.Name() // it may be in memory alone, and was made anew
		if w.there[i] && left < o.kept[i] && len(o.told) == 0 && !lost {
			t.Errorf("%s: %d bytes of file %d were kept, %d are there", name, o.kept[i], i, left)
		}
		checkRead(t, h, a.flat, 0, len(a.flat))
		if !h.Kept() || !h.Complete() {
			t.Errorf("%s: file %d is not kept", name, i)
		}
		_ = h.Close()
	}
}

// TestDiskFaults has a cache's life, from its first open to its last
// eviction, on disks that fail: no reader sees anything of it, what is read
// is right, the next open works, and what was kept is there.
func TestDiskFaults(t *testing.T) {
	tier.Long(t, "runs a cache's life on hundreds of failing disks")
	if withoutRace(t) {
		return
	}
	always := func(a faultdisk.Action) func(int) faultdisk.Action { return func(int) faultdisk.Action { return a } }
	any := func(faultdisk.Call) bool { return true } // reads too: what is not given back is fetched again
	every, seldom := 1, 8
	if tier.Shorter() > 1 {
		every, seldom = 24, 32
	}
	t.Run("one call fails", sweep{may: any, fault: always(faultdisk.Action{Err: unix.EIO}), every: every, least: 500 / every}.run)
	t.Run("killed", sweep{may: faultdisk.Call.Changes, fault: always(faultdisk.Action{Kill: true}), every: every, least: 100 / every}.run)
	t.Run("full", sweep{may: grows, every: every, least: 100 / every,
		fault: func(at int) faultdisk.Action { // a write may still get half of its bytes down
			return []faultdisk.Action{{Err: unix.ENOSPC}, {Short: true}}[at/every%2]
		},
		later: refuses(grows, unix.ENOSPC),
	}.run)
	fallocates := func(c faultdisk.Call) bool { return c.Name == "fallocate" }
	t.Run("killed without fallocate", sweep{may: faultdisk.Call.Changes, fault: always(faultdisk.Action{Kill: true}), every: seldom, least: 100 / seldom,
		lacks: refuses(fallocates, unix.EOPNOTSUPP)}.run)
	t.Run("full without fallocate", sweep{may: grows, every: seldom, least: 90 / seldom, fault: always(faultdisk.Action{Short: true}),
		lacks: refuses(fallocates, unix.EOPNOTSUPP), later: refuses(grows, unix.ENOSPC)}.run)
	for _, errno := range []unix.Errno{unix.EIO, unix.EROFS, unix.EACCES, unix.EDQUOT} {
		t.Run("refuses all from then on, "+errno.Error(), sweep{may: faultdisk.Call.Changes, every: seldom, least: 90 / seldom,
			fault: always(faultdisk.Action{Err: errno}), later: refuses(faultdisk.Call.Changes, errno)}.run)
	}
}

// grows says that a call may need blocks of the disk.
func grows(c faultdisk.Call) bool {
	return c.Changes() && c.Name != "openat" && c.Name != "unlinkat" && c.Name != "utimensat"
}

// refuses fails all calls of a kind.
func refuses(kind func(faultdisk.Call) bool, errno unix.Errno) func(faultdisk.Call) faultdisk.Action {
	return func(c faultdisk.Call) faultdisk.Action {
		if kind(c) {
			return faultdisk.Action{Err: errno}
		}
		return faultdisk.Action{}
	}
}

// underRace says that the race detector looks on.
var underRace bool

// withoutRace runs the test again in a process that it does not look on, and
// reports that it did: under it each of hundreds of processes takes a second.
func withoutRace(t *testing.T) bool {
	t.Helper()
	if !underRace {
		return false
	}
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^"+t.Name()+"$", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return true
}
