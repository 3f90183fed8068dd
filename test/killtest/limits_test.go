package killtest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
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
	lanes, rounds := 2, 25
	if tier.Shorter() > 1 {
		rounds = 8
	}
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
	// What is noted of references and working sets may be noted later.
	noted := func(name string) bool {
		return strings.Contains(name, "/refs/") && filepath.Ext(name) == ".json"
	}
	cache = slices.DeleteFunc(cache, noted)
	if now := slices.DeleteFunc(w.names("cache"), noted); !slices.Equal(now, cache) {
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

// same compares all that is mounted.
func (w *world) same() {
	w.t.Helper()
	out, err := exec.Command("diff", "-r", "-x", "snapshot.json", w.path("flat"), w.path("mnt")).CombinedOutput()
	if err != nil {
		w.t.Errorf("%s %v", out, err)
	}
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
			w := newWorld(t, front.Host, artifacttest.Options{Piece: 256 << 10}, manyFiles(t)...)
			w.env = append(w.env, restlessEnv+"=1")
			w.mount()
			worker := w.serving(0)
			before := w.descriptors(worker)
			var was unix.Rlimit
			w.must(unix.Prlimit(worker, unix.RLIMIT_NOFILE, nil, &was))
			if was.Cur != was.Max {
				t.Errorf("it has taken %d descriptors of %d that are allowed", was.Cur, was.Max)
			}
			w.must(unix.Prlimit(worker, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(before + spare), Max: was.Max}, nil))
			var readers []*reading
			for i, f := range w.files {
				readers = append(readers, w.read([]string{"whole", "pread", "mmap", "keep"}[i%4], f.Name))
			}
			if spare > 0 { // with none, nothing comes
				for _, r := range readers {
					r.finish(true)
				}
			} else {
				w.requestWaits(w.kernel())
				time.Sleep(time.Second) // for as long as there are none
			}
			w.must(unix.Prlimit(worker, unix.RLIMIT_NOFILE, &was, nil))
			if spare == 0 {
				for _, r := range readers {
					r.finish(true)
				}
			}
			w.same()
			w.poll("all is local", func() bool { return w.local() == w.payload() })
			w.poll("descriptors are given back", func() bool { return w.descriptors(worker) <= before+2*len(w.files) })
			n := w.status().Network
			if n.Retries == 0 {
				t.Error("it had descriptors enough")
			}
			if now := w.serving(0); now != worker {
				t.Errorf("worker %d was replaced by %d", worker, now)
			}
			w.unmount()
		})
	}
}
