// Package killtest kills the processes behind live mounts, or leaves them
// without what they need, and compares what readers see. Its readers are processes of their own: one that waits
// for a page of a mount stops all of a Go process with it.
package killtest

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// patience bounds every wait for something that must come.
const patience = time.Minute

// program is the binary under test, built without the race detector: with
// it, it is another program where time counts.
var program string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "reader" {
		os.Exit(reader(os.Args[2], os.Args[3], os.Args[4], os.Args[5]))
	}
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		fmt.Println("kills processes behind mounts: left out of make check, run by make test")
		return 0
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		fmt.Println("mounts need /dev/fuse and root here: nothing is tested")
		return 0
	}
	dir, err := os.MkdirTemp("", "epochfs-killtest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "epochfs")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "../../cmd/epochfs").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s", err, out)
		return 1
	}
	return m.Run()
}

// world is a registry and a mount of an artifact that lies in it.
type world struct {
	t      *testing.T
	dir    string
	host   string // of the registry
	env    []string
	flags  []string // of mount
	files  []artifacttest.File
	keeper int // process id
}

// newWorld stores files in a registry, which is at host.
func newWorld(t *testing.T, host string, how artifacttest.Options, files ...artifacttest.File) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), host: host, files: files, flags: []string{"--prefetch", "none"}}
	for _, dir := range []string{"mnt", "flat"} {
		w.must(os.Mkdir(w.path(dir), 0o700))
	}
	for _, f := range files {
		w.must(os.WriteFile(w.path("flat", f.Name), f.Data, 0o600))
	}
	w.env = append(os.Environ(), mounting.CacheDirEnv+"="+w.path("cache"), control.DirEnv+"="+w.path("run"), "HOME="+w.dir)
	pushAs(t, host, "vm", artifacttest.Snapshot(files, how))
	t.Cleanup(w.cleanUp)
	return w
}

func pushAs(t *testing.T, host, name string, a *artifacttest.Artifact) {
	t.Helper()
	ref, err := registry.ParseReference(host+"/"+name, registry.ReferenceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(ref, registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Push(context.Background(), r, name, "latest"); err != nil {
		t.Fatal(err)
	}
}

func (w *world) path(names ...string) string {
	return filepath.Join(append([]string{w.dir}, names...)...)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// cleanUp takes away what a test left that failed, and looks for what one
// left that did not.
func (w *world) cleanUp() {
	for unix.Unmount(w.path("mnt"), unix.MNT_DETACH) == nil {
		if !w.t.Failed() {
			w.t.Error("the mount was left")
		}
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := w.processes()
		if len(left) == 0 {
			break
		}
		if w.t.Failed() || time.Now().After(end) {
			w.t.Errorf("processes left: %v", left)
			for _, pid := range left {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			break
		}
	}
	if w.t.Failed() {
		text, _ := os.ReadFile(w.path("log"))
		w.t.Logf("log: ... %s", text[max(0, len(text)-4000):])
	}
}

// run runs a command of the program.
func (w *world) run(args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = w.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mount mounts, with more in the environment.
func (w *world) mount(env ...string) {
	w.t.Helper()
	if err := w.tryMount(env...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryMount(env ...string) error {
	args := append([]string{"mount", "--log-file", w.path("log")}, w.flags...)
	cmd := exec.Command(program, append(args, w.host+"/vm", w.path("mnt"))...)
	cmd.Env = append(slices.Clone(w.env), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	m, err := w.kept()
	w.keeper = m.Keeper
	return err
}

// unmount ends the mount, and with it all that was behind it.
func (w *world) unmount() {
	w.t.Helper()
	w.poll("it is unmounted", func() bool { // a reader's last RELEASE may be on its way
		_, err := w.run("umount", w.path("mnt"))
		return err == nil
	})
	w.poll("all processes end", func() bool { return len(w.processes()) == 0 })
}

func (w *world) poll(what string, so func() bool) {
	w.t.Helper()
	pause := 5 * time.Millisecond // longer each time: some ask a process that is made for it
	for end := time.Now().Add(patience); !so(); time.Sleep(pause) {
		if time.Now().After(end) {
			w.t.Fatalf("not in time: %s", what)
		}
		pause = min(pause*3/2, 50*time.Millisecond)
	}
}

// kept asks the keeper.
func (w *world) kept() (keeper.Mount, error) {
	all, err := keeper.List(w.path("run"))
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("%d mounts", len(all))
	}
	if err != nil {
		return keeper.Mount{}, err
	}
	return all[0], nil
}

// serving waits for a worker that serves, another than not.
func (w *world) serving(not int) int {
	w.t.Helper()
	pid := 0
	w.poll("a worker serves", func() bool {
		m, err := w.kept()
		pid = m.Worker
		return err == nil && pid != 0 && pid != not
	})
	return pid
}

// children are the keeper's.
func (w *world) children() (pids []int) {
	var text []byte
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.keeper))
	for _, name := range tasks {
		more, _ := os.ReadFile(name)
		text = append(append(text, ' '), more...)
	}
	for _, s := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(s); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes are those behind the mount, by the environment they got.
func (w *world) processes() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
		if env, err := os.ReadFile(file); err == nil && pid != os.Getpid() && strings.Contains(string(env), "\x00"+control.DirEnv+"="+w.path("run")+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// dead says that a process has ended; it may not have been waited for.
func dead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	// The first thread may end before those that still have files open.
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err != nil || len(threads) == 1 && strings.Contains(string(stat), ") Z ")
}

func (w *world) signal(pid int, s unix.Signal) {
	w.t.Helper()
	if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		w.t.Fatal(err)
	}
}

// status is what the mount tells of itself.
func (w *world) status() control.Mount {
	w.t.Helper()
	var m control.Mount
	w.poll("status", func() bool {
		all, err := control.List(w.path("run"))
		if err != nil || len(all) != 1 || all[0].Trouble != "" {
			return false
		}
		m = all[0]
		return true
	})
	return m
}

// opened counts the open handles of all files.
func (w *world) opened() (n int) {
	w.t.Helper()
	for _, f := range w.status().Files {
		n += f.Open
	}
	return n
}

// payload is the size of all files' data.
func (w *world) payload() (n int64) {
	for _, f := range w.files {
		n += int64(len(f.Payload()))
	}
	return n
}

// inMemory is a registry in this process.
func inMemory(t *testing.T) *registrytest.Front { return registrytest.InMemory(t) }

// someFiles are those of a small snapshot: one sparse, one dense, one small.
func someFiles(rng *rand.Rand, size int64) []artifacttest.File {
	memory := artifacttest.RandomFile(rng, "memory-ranges", size)
	for memory.Map.DataSize() < size/3 {
		memory = artifacttest.RandomFile(rng, "memory-ranges", size)
	}
	return []artifacttest.File{memory, dense(rng, "cow.raw", int(size/4)), dense(rng, "state.json", 150_000)}
}

func dense(rng *rand.Rand, name string, n int) artifacttest.File {
	data := make([]byte, 0, n+8)
	for len(data) < n {
		data = binary.LittleEndian.AppendUint64(data, rng.Uint64())
	}
	return artifacttest.File{Name: name, Data: data[:n]}
}

// newRand is random, and tells how.
func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
