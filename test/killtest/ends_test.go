package killtest

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func small(t *testing.T) *world {
	t.Helper()
	return newWorld(t, inMemory(t).Host, artifacttest.Options{Piece: 256 << 10}, someFiles(rand.New(rand.NewPCG(2, 2)), 4<<20)...)
}

// memory is the file in memory that a mount has, as inode.
func (w *world) memory() (ino uint64) {
	w.t.Helper()
	names, _ := filepath.Glob("/proc/" + strconv.Itoa(w.keeper) + "/fd/*")
	for _, name := range names {
		if to, _ := os.Readlink(name); strings.HasPrefix(to, "/memfd:epochfs mount") {
			info, err := os.Stat(name)
			w.must(err)
			return info.Sys().(*syscall.Stat_t).Ino
		}
	}
	w.t.Fatal("the keeper has no memory")
	return 0
}

// memoryHeld says whether any process still has it.
func memoryHeld(ino uint64) bool {
	names, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, name := range names {
		to, _ := os.Readlink(name)
		if !strings.HasPrefix(to, "/memfd:epochfs mount") {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.Sys().(*syscall.Stat_t).Ino == ino {
			return true
		}
	}
	return false
}

// kernel is the mount's directory in the kernel's file system for that.
func (w *world) kernel() string {
	w.t.Helper()
	control := w.path("control")
	w.must(os.Mkdir(control, 0o700))
	w.must(unix.Mount("none", control, "fusectl", 0, ""))
	w.t.Cleanup(func() { w.must(unix.Unmount(control, 0)) })
	var st unix.Stat_t
	w.must(unix.Stat(w.path("mnt"), &st))
	return filepath.Join(control, strconv.Itoa(int(unix.Minor(st.Dev))))
}

// requestWaits returns when a reader waits for an answer.
func (w *world) requestWaits(kernel string) {
	w.t.Helper()
	w.poll("a request waits", func() bool {
		text, err := os.ReadFile(filepath.Join(kernel, "waiting"))
		return err == nil && strings.TrimSpace(string(text)) != "0"
	})
}

// A mount's end, whoever brings it about, leaves no process, no memory, no
// socket.
func TestEnds(t *testing.T) {
	for _, how := range []string{"umount", "epochfs umount", "SIGTERM", "umount without a worker", "umount -l", "umount -f", "abort"} {
		t.Run(strings.ReplaceAll(how, " ", "-"), func(t *testing.T) {
			t.Parallel()
			w := small(t)
			w.mount()
			w.readAll()
			memory, dir := w.memory(), w.path("mnt")
			if !memoryHeld(memory) {
				t.Fatal("nobody has the memory")
			}
			w.poll("no handle is left", func() bool { return w.opened() == 0 })
			switch how {
			case "umount":
				w.must(exec.Command("umount", dir).Run())
			case "epochfs umount":
				_, err := w.run("umount", dir)
				w.must(err)
			case "SIGTERM":
				w.signal(w.keeper, unix.SIGTERM)
			case "umount without a worker":
				w.signal(w.keeper, unix.SIGSTOP)
				for _, pid := range w.children() {
					w.signal(pid, unix.SIGKILL)
				}
				w.must(unix.Unmount(dir, 0)) // umount would look around, and wait
				w.signal(w.keeper, unix.SIGCONT)
			case "umount -l":
				f, err := os.Open(w.path("mnt", "cow.raw"))
				w.must(err)
				w.must(exec.Command("umount", "-l", dir).Run())
				w.signal(w.serving(0), unix.SIGKILL) // it goes on for who has it open
				if _, err := f.ReadAt(make([]byte, 10), 100); err != nil {
					t.Error(err)
				}
				f.Close()
			case "umount -f":
				_ = exec.Command("umount", "-f", dir).Run() // it may say that it is busy
			case "abort":
				w.abort()
			}
			w.poll("all processes end", func() bool { return len(w.processes()) == 0 })
			// A process has no environment any more before its files are closed.
			w.poll("nobody has the memory", func() bool { return !memoryHeld(memory) })
			if left, err := os.ReadDir(w.path("run")); err != nil || len(left) > 0 {
				t.Errorf("sockets: %v, %v", left, err)
			}
			if how == "abort" {
				_, err := w.run("umount", dir)
				w.must(err)
			}
		})
	}
}

// abort ends the connection by the kernel's switch, while somebody reads
// and no worker answers: he gets an error.
func (w *world) abort() {
	w.t.Helper()
	kernel := w.kernel()
	w.signal(w.keeper, unix.SIGSTOP)
	for _, pid := range w.children() {
		w.signal(pid, unix.SIGKILL)
	}
	read := exec.Command("cat", w.path("mnt", "cow.raw"))
	w.must(read.Start())
	w.requestWaits(kernel)
	w.must(os.WriteFile(filepath.Join(kernel, "abort"), []byte("1"), 0))
	if err := read.Wait(); err == nil {
		w.t.Error("the reader got no error")
	}
	w.signal(w.keeper, unix.SIGCONT)
}

// Where no worker can come up, the connection is given up in the time that
// is stated: who waits gets an error, and can be killed.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	w := small(t)
	w.mount("EPOCHFS_KEEPER_TIMES=5s,5s,2s,50ms")
	first := w.serving(0)
	// A cache that is not one, and nothing to make another from.
	w.signal(w.keeper, unix.SIGSTOP)
	for _, pid := range w.children() {
		w.signal(pid, unix.SIGKILL)
	}
	w.poll("it is dead", func() bool { return dead(first) })
	w.must(os.Rename(w.path("cache"), w.path("gone")))
	w.must(os.WriteFile(w.path("cache"), nil, 0o600))
	w.signal(w.keeper, unix.SIGCONT)
	out, err := exec.Command("cat", w.path("mnt", "cow.raw")).CombinedOutput()
	if err == nil {
		t.Errorf("%d bytes came from nowhere", len(out))
	}
	w.poll("all processes end", func() bool { return len(w.processes()) == 0 })
	_, err = w.run("umount", w.path("mnt"))
	w.must(err)
}

// A full disk keeps no worker from coming up.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := small(t)
	w.must(os.Mkdir(w.path("cache"), 0o700))
	w.must(unix.Mount("none", w.path("cache"), "tmpfs", 0, "size=16m,mode=0700"))
	t.Cleanup(func() { _ = unix.Unmount(w.path("cache"), unix.MNT_DETACH) })
	w.mount()
	w.read("pread", "memory-ranges").finish(true)
	fill := exec.Command("dd", "if=/dev/zero", "of="+w.path("cache", "fill"), "bs=64k", "status=none")
	if err := fill.Run(); err == nil {
		t.Fatal("the disk is not full")
	}
	for range 3 {
		first := w.serving(0)
		for _, pid := range w.children() {
			w.signal(pid, unix.SIGKILL)
		}
		w.serving(first)
	}
	w.readAll()
	w.unmount()
}

// What a mount uses stays locked while no worker lives: another process
// evicts nothing of it.
func TestLockedWithoutWorker(t *testing.T) {
	t.Parallel()
	w := small(t)
	w.mount()
	w.read("whole", "state.json").finish(true)
	w.passes("state.json")
	held, err := os.Open(w.path("mnt", "state.json")) // in passthrough
	w.must(err)
	defer held.Close()
	reader := w.read("mmap", "memory-ranges")
	first := w.serving(0)
	w.signal(w.keeper, unix.SIGSTOP)
	for _, pid := range w.children() {
		w.signal(pid, unix.SIGKILL)
	}
	w.poll("it is dead", func() bool { return dead(first) })
	before := w.cached()
	prune := exec.Command(program, "cache", "prune", "--all", "--json")
	prune.Env = w.env
	out, err := prune.Output()
	w.must(err)
	var pruned struct{ Files []any }
	w.must(json.Unmarshal(out, &pruned))
	if after := w.cached(); len(pruned.Files) != 0 || !slices.Equal(before, after) || len(before) == 0 {
		t.Errorf("%s: there was %v, and is %v", out, before, after)
	}
	got := make([]byte, len(w.files[2].Data))
	if _, err := held.ReadAt(got, 0); err != nil || string(got) != string(w.files[2].Data) {
		t.Errorf("in passthrough, without a worker: %v", err)
	}
	w.signal(w.keeper, unix.SIGCONT)
	reader.finish(true)
	held.Close()
	w.readAll()
	w.unmount()
}

// cached lists the cache's files of content.
func (w *world) cached() []string {
	names, err := filepath.Glob(w.path("cache", "files", "*"))
	w.must(err)
	return names
}
