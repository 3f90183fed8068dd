package killtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// lean is a mount whose process is kept short of memory by squeeze, while
// all files are read at once. It says whether another process had to take
// over.
func lean(t *testing.T, how artifacttest.Options, env []string, squeeze func(w *world, worker int)) (replaced bool) {
	t.Helper()
	w := newWorld(t, inMemory(t).Host, how, someFiles(rand.New(rand.NewPCG(3, 3)), 24<<20)...)
	w.mount(env...)
	first := w.serving(0)
	squeeze(w, first)
	readers := []*reading{w.read("mmap", "memory-ranges"), w.read("direct", "memory-ranges")}
	for _, f := range w.files {
		readers = append(readers, w.read("whole", f.Name))
	}
	for _, r := range readers {
		r.finish(true)
	}
	w.same()
	last := w.serving(0)
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.unmount()
	return last != first
}

// A worker that is short of memory serves, or dies and is followed by
// another; readers notice neither.
func TestShortOfMemory(t *testing.T) {
	raw, zstd := artifacttest.Options{Piece: 256 << 10}, artifacttest.Options{Chunk: 4 << 20, Zstd: true}
	for name, c := range map[string]struct {
		how     artifacttest.Options
		env     []string
		squeeze func(w *world, worker int)
		dies    []bool // what may come of it
	}{
		"collector":       {zstd, []string{"GOMEMLIMIT=64MiB"}, func(*world, int) {}, []bool{false}},
		"addresses":       {raw, nil, func(w *world, worker int) { w.squeezeAddresses(worker, 4<<20) }, []bool{true, false}},
		"group":           {raw, nil, func(w *world, worker int) { w.group(96<<20, w.keeper, worker) }, []bool{false}},
		"group too small": {zstd, nil, func(w *world, worker int) { w.group(10<<20, worker) }, []bool{true}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			if died := lean(t, c.how, c.env, c.squeeze); !slices.Contains(c.dies, died) {
				t.Errorf("another process took over: %v", died)
			}
		})
	}
}

// squeezeAddresses leaves a process so many bytes of addresses more than it
// has.
func (w *world) squeezeAddresses(pid int, more uint64) {
	w.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	w.must(err)
	pages, err := strconv.ParseUint(strings.Fields(string(text))[0], 10, 64)
	w.must(err)
	var was unix.Rlimit
	w.must(unix.Prlimit(pid, unix.RLIMIT_AS, nil, &was))
	w.must(unix.Prlimit(pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: pages*uint64(os.Getpagesize()) + more, Max: was.Max}, nil))
}

// group puts processes into a group of the kernel's that may have so many
// bytes of memory.
func (w *world) group(limit int, pids ...int) {
	w.t.Helper()
	dir, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(dir); err != nil {
		dir, file = "/sys/fs/cgroup", "memory.max"
	}
	dir = filepath.Join(dir, "epochfs-"+filepath.Base(filepath.Dir(w.dir)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Skip("no memory cgroup can be made: ", err)
	}
	w.t.Cleanup(func() {
		w.poll("the group is empty", func() bool { return os.Remove(dir) == nil })
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0); err != nil {
		w.t.Skip("no memory cgroup can be made: ", err)
	}
	for _, pid := range pids {
		w.must(os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
}
