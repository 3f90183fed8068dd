package fs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// declining is a tree of one file of 8 MiB that declines what it may.
func declining(t *testing.T) (*tree, *node, func(off, size int64, how ...func(*fuse.ReadIn)) bool) {
	t.Helper()
	forceDeclining(t)
	tr, err := newTree([]File{bytesFile("f", make([]byte, 8<<20))}, Options{Decline: func(string, int64, int64) bool { return true }})
	check(t, err)
	tr.handles, err = openHandles(make([]byte, handlesSize(1, 16)), 1)
	check(t, err)
	h, _ := tr.handles.open(1, firstIno, cached, 0)
	n := tr.nodes[0]
	return tr, n, func(off, size int64, how ...func(*fuse.ReadIn)) bool {
		in := &fuse.ReadIn{Fh: h.fh, Offset: uint64(off), Size: uint32(size)}
		for _, f := range how {
			f(in)
		}
		return tr.declines(n, in)
	}
}

// forceDeclining takes it for granted that the kernel asks again.
func forceDeclining(t *testing.T) {
	before := kernelAsksAgain.Swap(true)
	t.Cleanup(func() { kernelAsksAgain.Store(before) })
}

// The rule says which READs may be declined, and no page is declined twice
// before it was served.
func TestDeclineRule(t *testing.T) {
	tr, n, ask := declining(t)
	direct, _ := tr.handles.open(2, firstIno, direct, 0)
	for _, c := range []struct {
		what      string
		off, size int64
		how       func(*fuse.ReadIn)
	}{
		{"a page", 0, pageSize, func(*fuse.ReadIn) {}},
		{"LOCKOWNER", 0, 1 << 20, func(in *fuse.ReadIn) { in.ReadFlags = fuse.READ_LOCKOWNER }},
		{"O_DIRECT", 0, 1 << 20, func(in *fuse.ReadIn) { in.Flags = unix.O_DIRECT }},
		{"a direct handle", 0, 1 << 20, func(in *fuse.ReadIn) { in.Fh = direct.fh }},
		{"no handle", 0, 1 << 20, func(in *fuse.ReadIn) { in.Fh = 7 }},
	} {
		if ask(c.off, c.size, c.how) {
			t.Errorf("%s was declined", c.what)
		}
	}
	if !ask(0, 1<<20) || ask(0, 1<<20) || ask(1<<20-pageSize, 2*pageSize) {
		t.Error("a page was declined twice, or not at all")
	}
	n.served(1<<20-pageSize, pageSize)
	if !ask(1<<20-pageSize, 2*pageSize) {
		t.Error("what was served is not declined again")
	}
	n.served(4<<20, sequentialLeast)
	if ask(4<<20+sequentialLeast, 1<<20) {
		t.Error("a sequential reader was declined")
	}
	if !ask(6<<20, 1<<20) {
		t.Error("another reader was not declined")
	}
	kernelAsksAgain.Store(false)
	if ask(7<<20, 1<<20) {
		t.Error("declined although the kernel does not play along")
	}
}

// The notes are bounded, and are ranges.
func TestDeclinedPages(t *testing.T) {
	var d declined
	for i := range int64(mostDeclined) {
		if !d.take(i*declinedBlock*pageSize, 2*pageSize) {
			if i < mostDeclined-4 {
				t.Fatalf("only %d blocks are noted", i)
			}
			break
		}
	}
	if d.take(1<<40, pageSize) || len(d.blocks) > mostDeclined {
		t.Errorf("%d blocks are noted", len(d.blocks))
	}
	d = declined{}
	window := int64(declinedBlock) * pageSize
	d.take(window-2*pageSize, 4*pageSize)
	d.served(window, pageSize)
	if got := d.runs(); !slices.Equal(got, []pageRange{{window - 2*pageSize, window}, {window + pageSize, window + 2*pageSize}}) {
		t.Errorf("%v", got)
	}
	if d.has(window) || !d.has(window-1) {
		t.Error("has")
	}
	d.served(0, 2*window)
	if d.some.Load() || len(d.runs()) > 0 {
		t.Error("something is left")
	}
}

// Every way to read shows right bytes, and no error, while all that may be
// declined is.
func TestReadsWhileDeclining(t *testing.T) {
	needRoot(t)
	forceDeclining(t)
	data := randomBytes(8<<20+1234, 11)
	f, c := countedFile("f", data)
	all := func(string, int64, int64) bool { return true }
	m := mounted(t, []File{f}, Options{Decline: all})
	path := filepath.Join(m.Dir(), "f")
	want := shaLine(data)
	forget := func() { help(t, "drop", path) }
	for _, how := range []string{"sha", "mmap", "odirect", "sendfile", "splice", "populate", "uring", "uringdirect"} {
		forget()
		if got := help(t, how, path); got != want && strings.TrimSpace(got) != "unsupported" {
			t.Errorf("%s: %s, want %s", how, got, want)
		} else if got != want {
			t.Logf("%s: not supported here", how)
		}
	}
	forget()
	var pages, expect []string
	for _, p := range []int{2000, 3, 700, 701, 1400, 9, 2048} {
		pages = append(pages, fmt.Sprint(p))
		expect = append(expect, fmt.Sprintf("%x\n", data[p*4096:p*4096+8]))
	}
	if got := help(t, append([]string{"touch", path}, pages...)...); got != strings.Join(expect, "") {
		t.Errorf("touched: %s", got)
	}
	if m.tree.declinedReads.Load() == 0 {
		t.Error("nothing was declined")
	}
	// The empty pages go, and then a reader in order does not ask for pages
	// one by one.
	m.Repair("f")
	eventually(t, "the drops are sent", func() bool {
		m.notify.mu.Lock()
		defer m.notify.mu.Unlock()
		return len(m.notify.waiting)+len(m.notify.sending) == 0
	})
	before := c.reads.Load()
	if got := help(t, "sha", path); got != want {
		t.Error("wrong bytes after the repair")
	}
	if n := c.reads.Load() - before; n > 300 {
		t.Errorf("%d READs of 8 MiB", n)
	}
}

// Loop devices, with direct I/O too, and overlayfs show right bytes.
func TestMountsOnTopWhileDeclining(t *testing.T) {
	needRoot(t)
	forceDeclining(t)
	data := randomBytes(8<<20, 12)
	f, _ := countedFile("f", data)
	all := func(string, int64, int64) bool { return true }
	m := mounted(t, []File{f}, Options{Decline: all})
	path := filepath.Join(m.Dir(), "f")
	for _, direct := range []string{"off", "on"} {
		out := run(t, "losetup", "--find", "--show", "--read-only", "--direct-io="+direct, path)
		loop := strings.TrimSpace(out)
		got := help(t, "sha", loop)
		run(t, "losetup", "-d", loop)
		if got != shaLine(data) {
			t.Errorf("loop device with direct I/O %s: wrong bytes", direct)
		}
		help(t, "drop", path)
	}
	over := emptyDir(t)
	lower := m.Dir()
	upper := t.TempDir()
	check(t, unix.Mount("tmpfs", upper, "tmpfs", 0, ""))
	defer func() { check(t, unix.Unmount(upper, unix.MNT_DETACH)) }()
	for _, d := range []string{"u", "w"} {
		run(t, "mkdir", filepath.Join(upper, d))
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", lower, upper, upper)
	if err := unix.Mount("overlay", over, "overlay", 0, opts); err != nil {
		t.Skip("no overlayfs on a mount here: ", err)
	}
	got := help(t, "sha", filepath.Join(over, "f"))
	mapped := help(t, "mmap", filepath.Join(over, "f"))
	check(t, unix.Unmount(over, 0))
	if got != shaLine(data) || mapped != got {
		t.Error("overlayfs: wrong bytes")
	}
}

// fio finds every block as it wrote it, whichever way it reads.
func TestFioWhileDeclining(t *testing.T) {
	tier.Long(t, "runs fio")
	needRoot(t)
	program, err := exec.LookPath("fio")
	if err != nil {
		t.Skip("no fio here: make race installs it")
	}
	forceDeclining(t)
	dir := t.TempDir()
	fio := func(file string, args ...string) {
		t.Helper()
		args = append([]string{"--name=verify", "--filename=" + file, "--size=16m", "--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--randseed=7"}, args...)
		cmd := exec.Command(program, args...)
		cmd.Dir = dir // fio writes a file about its job
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("fio %s: %v: %s", args, err, out)
		}
	}
	flat := filepath.Join(dir, "flat")
	fio(flat, "--rw=write", "--do_verify=0")
	data, err := os.ReadFile(flat)
	check(t, err)
	all := func(string, int64, int64) bool { return true }
	m := mounted(t, []File{bytesFile("f", data)}, Options{Decline: all})
	path := filepath.Join(m.Dir(), "f")
	for _, how := range [][]string{
		{"--ioengine=psync"},
		{"--ioengine=psync", "--direct=1"},
		{"--ioengine=mmap"},
		{"--ioengine=libaio", "--direct=1", "--iodepth=8"},
		{"--ioengine=io_uring", "--iodepth=8"},
		{"--ioengine=splice"},
	} {
		help(t, "drop", path)
		fio(path, append(how, "--readonly", "--rw=read")...)
	}
	if m.tree.declinedReads.Load() == 0 {
		t.Error("nothing was declined")
	}
}
