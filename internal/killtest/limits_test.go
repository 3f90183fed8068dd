package killtest

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/artifacttest"
	"github.com/cocoonstack/epochfs/internal/registrytest"
)

// names are those of all files below a directory.
func (w *world) names(dir string) (names []string) {
	w.must(filepath.WalkDir(w.path(dir), func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	}))
	return names
}

// Mounts on one cache that come and go leave no process, no mount, no
// socket and no temporary file.
func TestManyMounts(t *testing.T) {
	t.Parallel()
	w := small(t)
	w.mount()
	w.readAll()
	w.unmount()
	cache, run := w.names("cache"), w.names("run")
	const lanes, rounds = 2, 25
	var all sync.WaitGroup
	for lane := range lanes {
		dir := w.path(fmt.Sprint("lane", lane))
		w.must(os.Mkdir(dir, 0o700))
		all.Go(func() {
			for range rounds {
				if out, err := w.run("mount", w.host+"/vm", dir); err != nil {
					t.Error(out, err)
					return
				}
				out, err := exec.Command("cmp", filepath.Join(dir, "state.json"), w.path("flat", "state.json")).CombinedOutput()
				if err != nil {
					t.Errorf("%s %v", out, err)
				}
				w.poll("it is unmounted", func() bool { _, err := w.run("umount", dir); return err == nil })
			}
		})
	}
	all.Wait()
	w.poll("all processes end", func() bool { return len(w.processes()) == 0 })
	table, err := os.ReadFile("/proc/self/mounts")
	w.must(err)
	if n := strings.Count(string(table), w.dir); n > 0 {
		t.Errorf("%d mounts are left", n)
	}
	if now := w.names("cache"); !slices.Equal(now, cache) {
		t.Errorf("in the cache there was %q, and is %q", cache, now)
	}
	if now := w.names("run"); !slices.Equal(now, run) {
		t.Errorf("for sockets there was %q, and is %q", run, now)
	}
}

// descriptors are those that a process has.
func (w *world) descriptors(pid int) int {
	w.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	w.must(err)
	return len(all)
}

// manyFiles are forty of them, a third sparse.
func manyFiles(t *testing.T) (files []artifacttest.File) {
	rng := newRand(t)
	for i := range 40 {
		name := fmt.Sprintf("file-%d", i)
		if i%3 == 0 {
			files = append(files, artifacttest.RandomFile(rng, name, 1<<20))
		} else {
			files = append(files, dense(rng, name, 300_000+rng.IntN(500_000)))
		}
	}
	return files
}

// A worker that gets no more descriptors serves all the same: what wants
// one waits, or does without.
func TestOutOfDescriptors(t *testing.T) {
	for _, spare := range []int{0, 3} {
		t.Run(fmt.Sprint(spare), func(t *testing.T) {
			t.Parallel()
			front := registrytest.InMemory(t)
			w := newWorld(t, front.Host, artifacttest.Options{Piece: 128 << 10}, manyFiles(t)...)
			w.mount()
			worker := w.serving(0)
			before := w.descriptors(worker)
			limit := unix.Rlimit{Cur: uint64(before + spare), Max: 1 << 16}
			var was unix.Rlimit
			w.must(unix.Prlimit(worker, unix.RLIMIT_NOFILE, &limit, &was))
			if was.Cur != was.Max {
				t.Errorf("it had a soft limit of %d, of %d", was.Cur, was.Max)
			}
			var readers []*reading
			for i, f := range w.files {
				readers = append(readers, w.read([]string{"whole", "pread", "mmap", "keep"}[i%4], f.Name))
			}
			if spare > 0 { // with none, nothing comes
				for _, r := range readers {
					r.finish(true)
				}
				w.readAll()
			} else {
				w.poll("somebody waits", func() bool { return len(w.status().Waiting) > 0 })
			}
			w.must(unix.Prlimit(worker, unix.RLIMIT_NOFILE, &was, nil))
			if spare == 0 {
				for _, r := range readers {
					r.finish(true)
				}
			}
			w.readAll()
			w.poll("all is local", func() bool { return w.local() == w.payload() })
			w.poll("descriptors are given back", func() bool { return w.descriptors(worker) <= before+2*len(w.files) })
			if now := w.serving(0); now != worker {
				t.Errorf("worker %d was replaced by %d", worker, now)
			}
			w.unmount()
		})
	}
}

var _ = rand.Int
var _ = strconv.Itoa
var _ = time.Now
