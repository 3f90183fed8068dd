package killtest

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/guesttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// step says how a worker comes to a step of its program.
type step struct {
	nth    int
	before bool // the first worker does, before it has mounted
	takes  bool // one that takes over does
	zstd   bool // the artifact is compressed
	packed bool // it is packed
	ext2   bool // the cache is where no room can be made but with zeros
	evicts bool // the cache is too small for what it has already
}

// steps are all there are.
var steps = map[string]step{
	"state sized":             {nth: 1, before: true},
	"temporary file made":     {nth: 1, before: true},
	"temporary file written":  {nth: 1, before: true},
	"data made":               {nth: 1, before: true},
	"part fetched":            {nth: 3, zstd: true},
	"part decoded":            {nth: 3, zstd: true},
	"granule fetched":         {nth: 5, packed: true},
	"room made":               {nth: 1, ext2: true},
	"piece fetched":           {nth: 5},
	"run written":             {nth: 6},
	"piece written":           {nth: 7},
	"unlinked":                {nth: 1, evicts: true},
	"data synced":             {nth: 1},
	"words synced":            {nth: 2},
	"sealed":                  {nth: 1},
	"mode chosen":             {nth: 3},
	"slot written":            {nth: 4},
	"slot cleared":            {nth: 3},
	"backing file registered": {nth: 1},
	"backing file forgotten":  {nth: 1},
	"taken over":              {nth: 1, takes: true},
	"asked again":             {nth: 1, takes: true},
}

// A worker dies at each step once, under readers. They notice nothing, and
// what was present when it died is not fetched again.
func TestEveryStep(t *testing.T) {
	if here := stepsInSources(t); !slices.Equal(here, slices.Sorted(maps.Keys(steps))) {
		t.Errorf("the program's steps are %q", here)
	}
	rng := newRand(t)
	files := someFiles(rng, 8<<20)
	filler := artifacttest.Snapshot([]artifacttest.File{dense(rng, "filler", 8<<20)}, artifacttest.Options{})
	for name, s := range steps {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			dieAt(t, name, s, files, filler)
		})
	}
}

// stepsInSources are those that the program reaches.
func stepsInSources(t *testing.T) (names []string) {
	call := regexp.MustCompile(`crashpoint\.Reach\("([^"]+)"\)`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range call.FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func dieAt(t *testing.T, name string, s step, files []artifacttest.File, filler *artifacttest.Artifact) {
	front := inMemory(t)
	how := artifacttest.Options{Piece: 256 << 10}
	if s.zstd {
		how = artifacttest.Options{Chunk: 1 << 20, Zstd: true}
	}
	var cache string
	if s.ext2 {
		image := guesttest.Sparse(t, 256<<20)
		guesttest.Run(t, "mke2fs", "-q", "-F", "-t", "ext2", image)
		cache, _ = guesttest.Mount(t, image, "ext2", "")
	}
	w := newWorld(t, front.Host, how, files...)
	if s.ext2 {
		w.env = append(w.env, mounting.CacheDirEnv+"="+cache)
	}
	if s.packed {
		w.pack()
	}
	at := fmt.Sprintf("%s=%s:%d", crashpoint.Env, name, s.nth)
	switch {
	case s.before:
		if err := w.tryMount(at); err == nil {
			t.Fatal("it was not reached")
		}
		w.poll("all processes end", func() bool { return len(w.processes()) == 0 })
		w.mount()
		w.readAll()
		w.unmount()
		return
	case s.evicts:
		pushAs(t, front.Host, "filler", filler)
		if out, err := w.run("cat", front.Host+"/filler", "filler"); err != nil {
			t.Fatal(len(out), err)
		}
		w.flags = append(w.flags, "--cache-size", fmt.Sprint(w.payload()+6<<20))
	case s.takes:
		at = fmt.Sprintf("%s=,%s:%d", crashpoint.Env, name, s.nth)
	}
	w.mount(at)
	first := w.serving(0)
	if !s.takes {
		w.signal(w.keeper, unix.SIGSTOP) // nobody takes over at once
	}
	var readers []*reading
	for _, f := range w.files {
		readers = append(readers, w.read("whole", f.Name))
	}
	if s.takes {
		w.dieTaking(first)
	} else {
		w.poll("the step is reached", func() bool { return dead(first) })
		present := w.local()
		front.Reset()
		w.signal(w.keeper, unix.SIGCONT)
		w.serving(first)
		w.poll("all is local", func() bool { return w.local() == w.payload() })
		w.fetchedOnce(front, present, s)
	}
	for _, r := range readers {
		r.finish(true)
	}
	w.readAll()
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.unmount()
}

// pack has the artifact's name for a packed one of the same files.
func (w *world) pack() {
	w.t.Helper()
	export := w.path("export.tar")
	w.must(os.WriteFile(export, artifacttest.Tar(artifacttest.Envelope, w.files), 0o600))
	if out, err := w.run("push", "--format", "packed", "--input", export, w.host+"/vm:latest"); err != nil {
		w.t.Fatal(out, err)
	}
}

// fetchedOnce fails where what was there before was fetched, or anything twice
// but for one request.
func (w *world) fetchedOnce(front *registrytest.Front, present int64, s step) {
	w.t.Helper()
	if s.packed { // with the index, and a request of the worker that died which may be seen late
		if bytes, most := front.Counts().BlobBytes, w.payload()-present+1<<20; bytes > most {
			w.t.Errorf("%d of %d bytes were present, and %d were fetched", present, w.payload(), bytes)
		}
		return
	}
	if s.zstd {
		chunks, requests := len(front.BlobBytes()), front.Counts().Blobs
		if int64(chunks) > (w.payload()-present)/(1<<20)+int64(len(w.files)) || requests > chunks+1 {
			w.t.Errorf("%d of %d bytes were present, and %d chunks were fetched, in %d requests", present, w.payload(), chunks, requests)
		}
		return
	}
	if bytes, again, largest := w.asked(front); bytes != w.payload()-present || again > largest {
		w.t.Errorf("%d of %d bytes were present, %d were fetched, and %d again", present, w.payload(), bytes, again)
	}
}

// asked is what blobs, each a file's payload, were asked for: how many bytes,
// each counted once, how many more than once, and how many by the largest
// request. Who waits for a request that stands still makes another, and one of
// the worker that died may be seen late.
func (w *world) asked(front *registrytest.Front) (bytes, again, largest int64) {
	w.t.Helper()
	sizes := map[string]int64{}
	for _, f := range w.files {
		payload := f.Payload()
		sizes[fmt.Sprintf("%x", sha256.Sum256(payload))] = int64(len(payload))
	}
	ranges := map[string][][2]int64{}
	for _, r := range front.Requests() {
		if !r.IsBlob() {
			continue
		}
		blob := r.Path[strings.LastIndexByte(r.Path, ':')+1:]
		from, to := int64(0), sizes[blob]-1
		if text := r.Header.Get("Range"); text != "" {
			_, err := fmt.Sscanf(text, "bytes=%d-%d", &from, &to)
			w.must(err)
		}
		if from > to || to >= sizes[blob] {
			w.t.Errorf("bytes %d to %d of %s were asked for", from, to, blob)
			continue
		}
		ranges[blob] = append(ranges[blob], [2]int64{from, to + 1})
		largest = max(largest, to+1-from)
	}
	for _, all := range ranges {
		slices.SortFunc(all, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
		end := int64(0)
		for _, r := range all {
			news := max(0, r[1]-max(end, r[0]))
			bytes += news
			again += r[1] - r[0] - news
			end = max(end, r[1])
		}
	}
	return bytes, again, largest
}

// dieTaking kills the worker; the one that takes over dies as well.
func (w *world) dieTaking(worker int) {
	w.t.Helper()
	var spare int
	w.poll("a spare", func() bool {
		all := w.children()
		for _, pid := range all {
			if pid != worker {
				spare = pid
			}
		}
		return len(all) == 2
	})
	w.signal(worker, unix.SIGKILL)
	w.poll("the step is reached", func() bool { return dead(spare) })
	if now := w.serving(worker); now == spare {
		w.t.Error("the spare has not died")
	}
}

// readAll reads every file once.
func (w *world) readAll() {
	w.t.Helper()
	for _, f := range w.files {
		w.read("whole", f.Name).finish(true)
	}
}

// local counts the bytes that are present of the mounted artifact, as
// another process sees them.
func (w *world) local() (n int64) {
	w.t.Helper()
	cmd := exec.Command(program, "cache", "ls", "--json")
	cmd.Env = w.env
	out, err := cmd.Output()
	w.must(err)
	var listing struct {
		References []struct {
			Reference string
			Local     int64
		}
	}
	w.must(json.Unmarshal(out, &listing))
	for _, r := range listing.References {
		if strings.Contains(r.Reference, "/vm@") {
			n += r.Local
		}
	}
	return n
}

// The panic of a handler, and of any other goroutine, is a crash with its
// trace in the log, and not a hang.
func TestPanic(t *testing.T) {
	for _, name := range []string{"slot written", "piece written"} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, inMemory(t).Host, artifacttest.Options{Piece: 256 << 10}, someFiles(rand.New(rand.NewPCG(1, 1)), 8<<20)...)
			w.mount(crashpoint.Env + "=panic " + name + ":2")
			first := w.serving(0)
			reader := w.read("whole", "memory-ranges")
			w.serving(first)
			reader.finish(true)
			w.readAll()
			text, err := os.ReadFile(w.path("log"))
			if err != nil || !strings.Contains(string(text), "crashpoint.Reach") {
				t.Errorf("no trace in the log: %v", err)
			}
			w.unmount()
		})
	}
}
