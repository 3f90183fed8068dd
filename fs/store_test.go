package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counting is a content that counts its reads.
type counting struct {
	bytesContent
	reads atomic.Int64
}

func (c *counting) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	c.reads.Add(1)
	return c.bytesContent.ReadAt(ctx, p, off)
}

func countedFile(name string, b []byte) (File, *counting) {
	c := &counting{bytesContent: b}
	return fileOf(name, int64(len(b)), c), c
}

// from returns a function for Store that copies b.
func from(b []byte) func(p []byte, off int64) bool {
	return func(p []byte, off int64) bool { return copy(p, b[off:]) == len(p) }
}

// A page that was stored is read without a READ, and so is the file's last
// page, which is not whole. What was not stored is asked for.
func TestStore(t *testing.T) {
	data := randomBytes(64*4096+100, 3)
	f, c := countedFile("f", data)
	m := mounted(t, []File{f}, Options{})
	path := filepath.Join(m.Dir(), "f")
	if _, err := m.Store("f", 0, 4096, from(data)); !errors.Is(err, ErrUnknown) {
		t.Errorf("before the first lookup: %v", err)
	}
	known := make(chan string, 1)
	m.OnKnown(func(name string) {
		select {
		case known <- name:
		default:
		}
	})
	help(t, "stat", path)
	if name := <-known; name != "f" {
		t.Errorf("%q is known", name)
	}
	for _, s := range []struct{ off, n, stored int64 }{
		{0, 0, 0},
		{100, 4096, 0},      // no whole page
		{4096, 8191, 4096},  // one
		{-4096, 8192, 4096}, // the first
		{62 * 4096, 1 << 40, 2*4096 + 100},
		{64 * 4096, 50, 0},
		{1 << 40, 4096, 0},
	} {
		if n, err := m.Store("f", s.off, s.n, from(data)); n != s.stored || err != nil {
			t.Errorf("%+v: %d, %v", s, n, err)
		}
	}
	if n, err := m.Store("absent", 0, 4096, from(data)); n != 0 || !errors.Is(err, ErrNotStored) {
		t.Errorf("no such file: %d, %v", n, err)
	}
	missing := func([]byte, int64) bool { return false }
	if n, err := m.Store("f", 8*4096, 4096, missing); n != 0 || !errors.Is(err, ErrNotStored) {
		t.Errorf("what is missing: %d, %v", n, err)
	}
	size := int64(len(data))
	for _, at := range []int64{0, 4096, 62 * 4096, size - 100} {
		n := min(100, size-at)
		if got, want := help(t, "readat", path, fmt.Sprint(at), fmt.Sprint(n)), fmt.Sprintf("%x\n", data[at:at+n]); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
	if n := c.reads.Load(); n != 0 {
		t.Errorf("%d READs of what was stored", n)
	}
	if got := help(t, "sha", path); got != shaLine(data) {
		t.Error("wrong bytes")
	}
	if got := help(t, "stat", path); !strings.Contains(got, fmt.Sprintf(" size=%d ", size)) {
		t.Errorf("the size is changed: %s", got)
	}
	check(t, m.Unmount())
	m.Wait()
	if _, err := m.Store("f", 0, 4096, from(data)); err == nil {
		t.Error("stored after the end")
	}
}

// A store that waits for a locked page holds up nothing else, and no more than
// so many wait. All end with the mount.
func TestStoreOfLockedPages(t *testing.T) {
	locked := newBlocked(randomBytes(8<<20, 1))
	free := randomBytes(4096, 2)
	f, c := countedFile("free", free)
	m := mounted(t, []File{fileOf("locked", 8<<20, locked), f}, Options{})
	help(t, "stat", filepath.Join(m.Dir(), "free"))
	var readers []*child
	for i := range 2 {
		readers = append(readers, &child{Cmd: helperCmd("readat", filepath.Join(m.Dir(), "locked"), fmt.Sprint(i<<20), "4096")})
		check(t, readers[i].Start())
	}
	eventually(t, "pages are locked", func() bool { return locked.entered.Load() >= 2 })
	reads := &m.tree.byName["locked"].reads
	reads.mu.Lock()
	for i := range reads.ranges { // as if they had come only after the look
		reads.ranges[i] = pageRange{1 << 40, 1<<40 + 1}
	}
	reads.mu.Unlock()
	var storing sync.WaitGroup
	for i := range 2 {
		storing.Go(func() { _, _ = m.Store("locked", int64(i)<<20, 4096, from(locked.bytesContent)) })
	}
	eventually(t, "stores wait", func() bool { return len(stuckIn(t, unix.SYS_WRITEV)) == 2 })
	began := time.Now()
	for i := range 100 {
		m.Forget("locked", int64(i%2)<<20, 4096)
	}
	if took := time.Since(began); took > 20*time.Second { // a page stays locked for longer
		t.Errorf("the callers waited %v", took)
	}
	if _, err := m.Store("locked", 0, 4096, from(locked.bytesContent)); !errors.Is(err, ErrNotStored) {
		t.Errorf("a range that is being stored: %v", err)
	}
	if n, err := m.Store("free", 0, 4096, from(free)); n != 4096 || err != nil {
		t.Errorf("another file: %d, %v", n, err)
	}
	if got := shows(t, m, "free", 0); got != free[0] || c.reads.Load() != 0 {
		t.Errorf("%q after %d READs", got, c.reads.Load())
	}
	check(t, Unmount(m.Dir(), true))
	close(locked.open)
	for _, r := range readers {
		check(t, r.Wait())
	}
	storing.Wait()
	m.Wait()
}

// A store does not wait for a READ that is being answered, and stores what lies
// around it.
func TestStoreAroundReads(t *testing.T) {
	data := randomBytes(8<<20, 1)
	locked := newBlocked(data)
	m := mounted(t, []File{fileOf("f", 8<<20, locked)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	reader := &child{Cmd: helperCmd("readat", path, fmt.Sprint(4<<20), "4096")}
	check(t, reader.Start())
	eventually(t, "pages are locked", func() bool { return locked.entered.Load() >= 1 })
	began := locked.entered.Load()
	if n, err := m.Store("f", 0, 8<<20, from(data)); n != 8<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, at := range []int64{0, 8<<20 - 4096} {
		if got := shows(t, m, "f", int(at/4096)); got != data[at] {
			t.Errorf("at %d: %q", at, got)
		}
	}
	if n := locked.entered.Load(); n != began {
		t.Errorf("%d READs of what was stored", n-began)
	}
	close(locked.open)
	check(t, reader.Wait())
	if got := help(t, "sha", path); got != shaLine(data) {
		t.Error("wrong bytes")
	}
	if n := m.tree.byName["f"].reads.ranges; len(n) == 0 || slices.ContainsFunc(n, func(r pageRange) bool { return r != pageRange{} }) {
		t.Errorf("READs are left: %v", n)
	}
}

func TestFirstRead(t *testing.T) {
	var r reads
	slots := []int{r.begin(8192, 100), r.begin(65536, 4096), r.begin(8192, 100)}
	for _, c := range []struct{ in, want pageRange }{
		{pageRange{0, 8192}, pageRange{8192, 8192}},
		{pageRange{0, 1 << 20}, pageRange{8192, 12288}},
		{pageRange{12288, 1 << 20}, pageRange{65536, 69632}},
		{pageRange{69632, 1 << 20}, pageRange{1 << 20, 1 << 20}},
	} {
		if got := r.first(c.in); got != c.want {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
	for _, slot := range slots {
		r.end(slot)
	}
	if got, want := r.first(pageRange{0, 1 << 20}), (pageRange{1 << 20, 1 << 20}); got != want {
		t.Errorf("%v are left", got)
	}
	if slot := r.begin(0, 4096); slot != 0 {
		t.Errorf("slot %d, and 0 is free", slot)
	}
}

// What is dropped while it is being stored is dropped when it has arrived, so
// that no wrong bytes stay, and what is to be dropped is not stored.
func TestDropWhileStoring(t *testing.T) {
	const pages = 16
	wrong, right := bytes.Repeat([]byte{'a'}, pages*4096), bytes.Repeat([]byte{'b'}, pages*4096)
	f, _ := countedFile("f", right)
	m := mounted(t, []File{f}, Options{})
	help(t, "stat", filepath.Join(m.Dir(), "f"))
	for range 20 {
		n, err := m.Store("f", 0, pages*4096, func(p []byte, off int64) bool {
			copy(p, wrong[off:])
			m.Forget("f", 5*4096, 4096) // found just after the bytes were read
			return true
		})
		if n != pages*4096 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		eventually(t, "the wrong page is dropped", func() bool { return shows(t, m, "f", 5) == 'b' })
		if got := shows(t, m, "f", 4); got != 'a' {
			t.Fatalf("page 4 shows %q", got)
		}
		m.Forget("f", 0, 0)
		eventually(t, "all is dropped", func() bool { return shows(t, m, "f", 4) == 'b' })
	}
	m.notify.mu.Lock()
	m.notify.waiting[2] = []pageRange{{4096, 8192}}
	m.notify.mu.Unlock()
	if _, err := m.Store("f", 0, pages*4096, from(wrong)); !errors.Is(err, ErrNotStored) {
		t.Errorf("what is to be dropped: %v", err)
	}
	m.notify.mu.Lock()
	clear(m.notify.waiting)
	m.notify.mu.Unlock()
}

// Files in passthrough take no pages: their backing file is read ahead.
func TestStoreInPassthrough(t *testing.T) {
	needRoot(t)
	data := randomBytes(4<<20, 5)
	c := diskFile(t, data)
	c.ready.Store(true)
	m := mounted(t, []File{fileOf("f", int64(len(data)), c)}, Options{})
	path := filepath.Join(m.Dir(), "f")
	holder := start(t, helperCmd("hold", path, "plain"))
	m.eventually(t, "f", Usage{Passthrough: 1})
	check(t, unix.Fsync(int(c.file.Fd())))
	check(t, unix.Fadvise(int(c.file.Fd()), 0, 0, unix.FADV_DONTNEED))
	if n := residentPages(t, c.file, len(data)); n != 0 {
		t.Skipf("%d pages cannot be dropped here", n)
	}
	n, err := m.Store("f", 1<<20, 64<<10, func([]byte, int64) bool { t.Error("read"); return false })
	if n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	eventually(t, "the backing file was read", func() bool { return residentPages(t, c.file, len(data)) >= 16 })
	holder.finish(t)
	m.eventually(t, "f", Usage{})
}

// residentPages counts the pages of a file in the page cache.
func residentPages(t *testing.T, f *os.File, size int) (n int) {
	t.Helper()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	check(t, err)
	defer unix.Munmap(mem)
	vec := make([]byte, (size+4095)/4096)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(size), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, b := range vec {
		n += int(b & 1)
	}
	return n
}

// Stores stop where the cgroup has little left.
func TestHeadroom(t *testing.T) {
	groups := []memoryGroup{{limit: 64 << 20, used: 50 << 20}, {limit: 1 << 40, used: 0}}
	h := headroom{groups: func() []memoryGroup { return groups }}
	var taken int64
	for h.take(256 << 10) {
		taken += 256 << 10
		groups[0].used += 256 << 10
		if taken > 1<<30 {
			t.Fatal("it never ends")
		}
	}
	if want := int64(64-50-4) << 20; taken < want-headroomStep || taken > want+headroomStep {
		t.Errorf("%d bytes were stored, not some %d", taken, want)
	}
	groups[0].used = 0
	if !h.take(4096) {
		t.Error("nothing is stored although there is room")
	}
	h = headroom{groups: func() []memoryGroup { return nil }}
	if !h.take(1 << 30) {
		t.Error("nothing is stored without a limit")
	}
}
