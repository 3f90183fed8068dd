package mounts

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

func TestFind(t *testing.T) {
	m, err := Find("/proc")
	if err != nil || m == nil || m.Type != "proc" || m.Ours() {
		t.Fatalf("Find(/proc) = %+v, %v", m, err)
	}
	if m, err := Find(t.TempDir()); err != nil || m != nil {
		t.Fatalf("Find(no mountpoint) = %+v, %v", m, err)
	}
}

func TestFindTopmost(t *testing.T) {
	tier.Long(t, "mounts")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	for _, source := range []string{"under", "over"} {
		if err := unix.Mount(source, dir, "tmpfs", 0, ""); err != nil {
			t.Skipf("mounting is not allowed here: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(dir, 0) })
	}
	if m, err := Find(dir); err != nil || m == nil || m.Source != "over" {
		t.Fatalf("Find = %+v, %v", m, err)
	}
}

// asMount takes a plain directory for a mount.
func asMount(t *testing.T, dir string) *Mount {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return &Mount{Dir: dir, Major: int(unix.Major(st.Dev)), Minor: int(unix.Minor(st.Dev))}
}

func find(users []User, pid int) string {
	for _, u := range users {
		if u.PID == pid {
			return u.What
		}
	}
	return ""
}

func TestUsers(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// No device of this number: mappings are another test's.
	m := &Mount{Dir: dir, Major: 1 << 20}
	if users := m.Users(); len(users) > 0 {
		t.Fatalf("an unused directory is used by %v", users)
	}
	f, err := os.Create(filepath.Join(dir, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := find(m.Users(), os.Getpid()); got != "has memory open" {
		t.Errorf("with an open file: %q", got)
	}
	child := exec.Command("cat")
	child.Dir = dir
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if got := find(m.Users(), child.Process.Pid); got != "has its working directory there" {
		t.Errorf("with its directory there: %q", got)
	}
	in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A path belongs to each mount that it is in or on, and to no other of a similar
// name.
func TestPlaces(t *testing.T) {
	p := newPlaces([]*Mount{{Dir: "/a"}, {Dir: "/a/b"}, {Dir: "/a"}, {Dir: "/c"}, {Dir: "/"}})
	for path, want := range map[string][]int{
		"/a":             {0, 2, 4},
		"/a/file":        {0, 2, 4},
		"/a/b":           {1, 0, 2, 4},
		"/a/b/c/d":       {1, 0, 2, 4},
		"/ab":            {4},
		"/c/x (deleted)": {3, 4},
		"/":              {4},
		"pipe:[123]":     nil,
		"":               nil,
	} {
		if got := p.with(path); !slices.Equal(got, want) {
			t.Errorf("%q is in %v, not in %v", path, got, want)
		}
	}
}

// Each mount has its own users, whoever is looked at with it.
func TestUsersOfSeveral(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var all []*Mount
	for i, name := range []string{"one", "two", "two/below", "none"} {
		m := &Mount{Dir: filepath.Join(dir, name), Major: 1<<20 + i} // devices that do not exist
		if err := os.Mkdir(m.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	for _, name := range []string{"one/%s", "two/below/cow.raw"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	var got []string
	for _, users := range UsersOf(all) {
		got = append(got, find(users, os.Getpid()))
	}
	want := []string{"has %s open", "has below/cow.raw open", "has cow.raw open", ""}
	if !slices.Equal(got, want) {
		t.Errorf("users: %q, not %q", got, want)
	}
}

func TestMapped(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	mapping, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mapping)
	f.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var line string
	for l := range strings.Lines(string(maps)) {
		if strings.Contains(l, f.Name()) {
			line = l
		}
	}
	table := filepath.Join(dir, "maps")
	if err := os.WriteFile(table, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	m := asMount(t, dir)
	use := func() string {
		used := map[int]string{}
		newPlaces([]*Mount{m}).mapped(table, used)
		return used[0]
	}
	if got := use(); got != "has memory mapped" {
		t.Errorf("mapped: %q in %q", got, line)
	}
	m.Minor++
	if got := use(); got != "" {
		t.Errorf("another device: %q", got)
	}
}

func TestLoops(t *testing.T) {
	tier.Long(t, "makes loop devices")
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this kernel has no loop devices")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "cow.raw")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-r", "--show", "-f", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", device).Run()
	for _, u := range asMount(t, dir).Users() {
		if u.Command == device && u.What == "is a loop device over cow.raw" && u.PID == 0 {
			return
		}
	}
	t.Errorf("%s is not among the users", device)
}
