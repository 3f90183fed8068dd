package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/test/tier"
)

// crashDirEnv makes the test binary a process that fills the cache in
// this directory until it dies.
const crashDirEnv = "EPOCHFS_TEST_CRASH_DIR"

// crashFiles are the same in every process: they come from one seed.
func crashFiles(t testing.TB) (*fakeSource, []artifact) {
	rng := rand.New(rand.NewPCG(7, 7))
	src := &fakeSource{}
	var files []artifact
	for _, k := range kinds[:4] {
		files = append(files, makeFile(t, rng, src, k, 1<<20+300_000))
	}
	return src, files
}

// crashingProcess reads all files, has them sealed, and makes room again.
func crashingProcess(dir string) {
	t := &quiet{}
	src, files := crashFiles(t)
	c, err := Open(dir, Options{grace: time.Minute})
	t.must(err)
	c.pace.patient()
	for _, a := range files {
		h, err := c.File(a.file, src)
		t.must(err)
		if _, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0); err != nil {
			t.must(err)
		}
		for ok := false; !ok; _, ok = h.Backing() {
			time.Sleep(time.Millisecond)
		}
		t.must(h.Close())
	}
	t.must(c.dir.Remove(files[0].file.Key()))
	t.must(c.Close())
}

// quiet stands for a test in a process that has none.
type quiet struct{ testing.TB }

func (*quiet) Helper()             {}
func (*quiet) Logf(string, ...any) {}
func (*quiet) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}
func (q *quiet) must(err error) {
	if err != nil {
		q.Fatal(err)
	}
}

// TestKilledAtEveryStep kills a process at each of its steps on disk. What
// it leaves is a cache that serves right bytes, and does not fetch again
// what was marked present.
func TestKilledAtEveryStep(t *testing.T) {
	tier.Long(t, "kills a process at each step")
	if withoutRace(t) {
		return
	}
	src, files := crashFiles(t)
	steps := map[string]bool{}
	died, rare := 0, min(tier.Shorter(), 4)
	for step, every := range map[string]int{
		"state sized": 1, "data made": 1, "temporary file made": 1, "temporary file written": 1,
		"part fetched": rare, "part decoded": rare, "piece fetched": 4 * rare,
		"run written": 9 * rare, "piece written": 5 * rare, "data synced": 1, "words synced": 1, "sealed": 1, "unlinked": 1,
	} {
		for n := 1; ; n += every {
			dir := diskDir(t)
			reached := crashAt(t, dir, step, n)
			if reached {
				died++
				steps[step] = true
				checkLeft(t, dir, src, files)
			}
			_ = os.RemoveAll(dir)
			if !reached {
				break
			}
		}
		if !steps[step] {
			t.Errorf("no process came to the step %q", step)
		}
	}
	t.Logf("%d processes were killed", died)
}

// crashAt runs a process that dies the nth time it reaches a step. It
// reports false for one that did not get there.
func crashAt(t *testing.T, dir, step string, n int) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, fmt.Sprintf("%s=%s:%d", crashpoint.Env, step, n))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return true
	}
	t.Fatalf("%s %d: %v: %s", step, n, err, out)
	return false
}

// checkLeft opens what a dead process left.
func checkLeft(t *testing.T, dir string, src *fakeSource, files []artifact) {
	t.Helper()
	c := openCache(t, dir, Options{})
	defer c.Close()
	for _, a := range files {
		h := openFile(t, c, a.file, src)
		kept := h.Cached()
		src.reset()
		checkRead(t, h, a.flat, 0, len(a.flat))
		if _, fetched := src.reset(); a.file.Parts[0].Encoding == 0 && fetched != int64(len(a.data))-kept {
			t.Errorf("%d of %d bytes were present, and %d were fetched", kept, len(a.data), fetched)
		}
		eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
		_ = h.Close()
	}
}

// TestPowerCut loses whatever was not synced: pages of the data, and words
// of the state, each at random. What was sealed stays, the rest is looked
// at before it is believed.
func TestPowerCut(t *testing.T) {
	rng, rounds := newRand(t), 30
	if tier.Shorter() > 1 {
		rounds = 12
	}
	for range rounds {
		k := kinds[rng.IntN(4)]
		src := &fakeSource{}
		a := makeFile(t, rng, src, k, 1<<20+rng.IntN(1<<20))
		dir := t.TempDir()
		c := openCache(t, dir, Options{})
		h := openFile(t, c, a.file, src)
		if rng.IntN(3) == 0 {
			checkRead(t, h, a.flat, 0, len(a.flat))
			eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
		} else {
			for range 4 {
				checkRead(t, h, a.flat, rng.IntN(len(a.flat)), 100_000)
			}
		}
		_ = h.Close()
		_ = c.Close()
		sealed := cutPower(t, rng, filepath.Join(dir, disk.Files, a.file.Key()))
		h = openFile(t, openCache(t, dir, Options{}), a.file, src)
		src.reset()
		checkRead(t, h, a.flat, 0, len(a.flat))
		if n, _ := src.reset(); sealed && n != 0 {
			t.Errorf("what was sealed was fetched again: %d requests", n)
		}
	}
}

// cutPower makes the files what a disk may hold after it. It reports
// whether they were sealed: then they are what they were.
func cutPower(t *testing.T, rng *rand.Rand, name string) (sealed bool) {
	t.Helper()
	state, err := os.ReadFile(name + ".state")
	if err != nil {
		t.Fatal(err)
	}
	state[disk.OffBoot]++
	sealed = state[disk.OffFlags]&disk.FlagSealed != 0
	if !sealed {
		data, err := os.OpenFile(name+".data", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer data.Close()
		info, err := data.Stat()
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < info.Size(); off += 4096 {
			if rng.IntN(4) == 0 {
				if err := unix.Fallocate(int(data.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 4096); err != nil {
					t.Fatal(err)
				}
			}
		}
		for off := disk.StateHeader; off < len(state); off += 8 {
			if rng.IntN(8) == 0 {
				clear(state[off : off+8])
			}
		}
	}
	if err := os.WriteFile(name+".state", state, 0o600); err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestSweep: what a dead process was writing goes.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	_ = openCache(t, dir, Options{}).Close()
	old, young := filepath.Join(dir, disk.Blobs, "x"+disk.TmpMark+"1"), filepath.Join(dir, disk.Files, "y"+disk.TmpMark+"2")
	future := filepath.Join(dir, disk.Refs, "z"+disk.TmpMark+"3")
	for _, name := range []string{old, young, future} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, by := range map[string]time.Duration{old: -2 * time.Hour, future: 2 * time.Hour} {
		then := time.Now().Add(by)
		if err := os.Chtimes(name, then, then); err != nil {
			t.Fatal(err)
		}
	}
	openCache(t, dir, Options{})
	for _, name := range []string{old, future} {
		if _, err := os.Stat(name); err == nil {
			t.Errorf("what a dead process was writing is still there: %s", name)
		}
	}
	if _, err := os.Stat(young); err != nil {
		t.Error("what another process is writing is gone")
	}
}
