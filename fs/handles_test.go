package fs

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func newTestHandles(t *testing.T, files, slots int) *handles {
	t.Helper()
	h, err := openHandles(make([]byte, handlesSize(files, slots)), files)
	check(t, err)
	return h
}

// free is how many handles could be opened.
func (h *handles) free() int { return len(h.unused) + h.slots - int(h.used) }

func (h *handles) mustOpen(t *testing.T, unique, ino uint64, mode openMode, id int32) handle {
	t.Helper()
	hd, ok := h.open(unique, ino, mode, id)
	if !ok {
		t.Fatal("no slot is free")
	}
	return hd
}

func TestHandlesSlotsAndGenerations(t *testing.T) {
	h := newTestHandles(t, 2, 2)
	a := h.mustOpen(t, 10, 2, cached, 0)
	b := h.mustOpen(t, 12, 3, passthrough, 7)
	if uint32(a.fh) != 0 || uint32(b.fh) != 1 {
		t.Errorf("slots %d and %d", uint32(a.fh), uint32(b.fh))
	}
	if _, ok := h.open(14, 2, cached, 0); ok {
		t.Error("three handles in two slots")
	}
	if got, ok := h.find(10 | resent); !ok || got != a {
		t.Errorf("an OPEN sent again found %v, %v", got, ok)
	}
	if u, id := h.usage(3); u != (Usage{Passthrough: 1}) || id != 0 {
		t.Errorf("%+v, %d", u, id)
	}
	if got, ok := h.release(a.fh); !ok || got != a {
		t.Errorf("release: %v, %v", got, ok)
	}
	c := h.mustOpen(t, 16, 3, direct, 0) // takes a's slot
	if uint32(c.fh) != uint32(a.fh) || c.fh == a.fh {
		t.Errorf("handle %x after %x", c.fh, a.fh)
	}
	// a's RELEASE again must not free c.
	if _, ok := h.release(a.fh); ok {
		t.Error("a handle was released twice")
	}
	if got, ok := h.get(c.fh); !ok || got != c {
		t.Errorf("%v, %v", got, ok)
	}
	if _, ok := h.get(a.fh); ok {
		t.Error("a handle lives on")
	}
	if _, ok := h.find(10); ok {
		t.Error("a released OPEN is found")
	}
	for _, fh := range []uint64{2, 1 << 31, 1<<64 - 1, 0} {
		if _, ok := h.release(fh); ok {
			t.Errorf("handle %x was never open", fh)
		}
	}
}

// Whoever takes the memory over knows all of it, wherever the process
// before was killed: counts that do not agree with the slots are made
// again.
func TestHandlesTakeOver(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const files, slots = 5, 64
	mem := make([]byte, handlesSize(files, slots))
	h, err := openHandles(mem, files)
	check(t, err)
	live := map[uint64]handle{} // by unique
	for unique := uint64(2); unique < 4000; unique += 2 {
		if r.IntN(2) == 0 && len(live) < slots {
			live[unique] = h.mustOpen(t, unique, firstIno+r.Uint64N(files), cached+openMode(r.IntN(3)), r.Int32())
		} else {
			for u, hd := range live {
				if _, ok := h.release(hd.fh); !ok {
					t.Fatalf("handle %x is not open", hd.fh)
				}
				delete(live, u)
				break
			}
		}
		if unique%500 == 0 {
			h.setBacking(firstIno+unique%files, int32(unique))
			before := fmt.Sprint(usages(h))
			h.put32(h.fileAt(firstIno), 99)
			h, err = openHandles(mem, files)
			check(t, err)
			if after := fmt.Sprint(usages(h)); after != before {
				t.Fatalf("counts %s became %s", before, after)
			}
		}
		for u, hd := range live {
			if got, ok := h.find(u); !ok || got != hd {
				t.Fatalf("OPEN %d: %v, %v, want %v", u, got, ok, hd)
			}
		}
		if h.free()+len(live) != slots || len(h.opens) != len(live) {
			t.Fatalf("%d free, %d open, %d known", h.free(), len(live), len(h.opens))
		}
	}
}

func usages(h *handles) (all []any) {
	for i := range h.files {
		u, id := h.usage(uint64(firstIno + i))
		all = append(all, u, id)
	}
	return all
}

func TestHandlesRefused(t *testing.T) {
	good := make([]byte, handlesSize(2, 4))
	h, err := openHandles(good, 2)
	check(t, err)
	h.mustOpen(t, 2, 3, cached, 0)
	for name, spoil := range map[string]func([]byte) ([]byte, int){
		"magic":          func(b []byte) ([]byte, int) { b[3] = 'x'; return b, 2 },
		"version":        func(b []byte) ([]byte, int) { b[8]++; return b, 2 },
		"other files":    func(b []byte) ([]byte, int) { return b, 1 },
		"fewer slots":    func(b []byte) ([]byte, int) { return b[:len(b)-slotSize], 2 },
		"no slots":       func(b []byte) ([]byte, int) { return b[:headerSize+10], 2 },
		"unknown mode":   func(b []byte) ([]byte, int) { b[headerSize+2*fileSize] = 9; return b, 2 },
		"unknown inode":  func(b []byte) ([]byte, int) { b[headerSize+2*fileSize+16] = 4; return b, 2 },
		"inode below":    func(b []byte) ([]byte, int) { b[headerSize+2*fileSize+16] = 1; return b, 2 },
		"not aligned":    func(b []byte) ([]byte, int) { return append(make([]byte, 1, 1+len(b)), b...)[1:], 2 },
		"nothing at all": func([]byte) ([]byte, int) { return nil, 0 },
	} {
		b, files := spoil(append([]byte(nil), good...))
		if _, err := openHandles(b, files); err == nil {
			t.Errorf("%s: taken over", name)
		}
	}
}

// fakeKernel counts registered backing files.
type fakeKernel struct {
	next  int32
	live  map[int32]bool
	errno unix.Errno
}

func (k *fakeKernel) RegisterBackingFd(*fuse.BackingMap) (int32, unix.Errno) {
	if k.errno != 0 {
		return 0, k.errno
	}
	k.next++
	k.live[k.next] = true
	return k.next, 0
}

func (k *fakeKernel) UnregisterBackingFd(id int32) unix.Errno {
	if !k.live[id] {
		return unix.ENOENT
	}
	delete(k.live, id)
	return 0
}

func (k *fakeKernel) dead() bool { return false }

func (t *tree) testOpen(unique, ino uint64, flags uint32) (fuse.OpenOut, fuse.Status) {
	in := fuse.OpenIn{InHeader: fuse.InHeader{NodeId: ino, Unique: unique}, Flags: flags}
	var out fuse.OpenOut
	st := t.Open(nil, &in, &out)
	return out, st
}

func (t *tree) testRelease(unique, ino, fh uint64) {
	t.Release(nil, &fuse.ReleaseIn{InHeader: fuse.InHeader{NodeId: ino, Unique: unique}, Fh: fh})
}

func testTree(t *testing.T, contents ...Content) (*tree, *fakeKernel) {
	t.Helper()
	var files []File
	for i, c := range contents {
		size := int64(4096)
		if b, ok := c.Backing(); ok {
			st, err := b.Stat()
			check(t, err)
			size = st.Size()
		}
		files = append(files, fileOf(fmt.Sprint("f", i), size, c))
	}
	tr, err := newTree(files, Options{})
	check(t, err)
	tr.handles = newTestHandles(t, len(files), maxHandles)
	check(t, err)
	k := &fakeKernel{live: map[int32]bool{}}
	tr.kernel = k
	return tr, k
}

// Requests sent again change nothing: not the counts, not the modes, not
// the backing files.
func TestRequestsTwice(t *testing.T) {
	disk := diskFile(t, randomBytes(4096, 1))
	tr, k := testTree(t, disk, BytesContent(make([]byte, 4096)))
	for _, ino := range []uint64{2, 3} {
		for _, ready := range []bool{false, true} {
			disk.ready.Store(ready)
			for _, flags := range []uint32{unix.O_RDONLY, unix.O_RDONLY | unix.O_DIRECT} {
				first, st := tr.testOpen(100, ino, flags)
				if !st.Ok() {
					t.Fatal(st)
				}
				before := fmt.Sprint(usages(tr.handles), k.live, k.next)
				again, st := tr.testOpen(100|resent, ino, flags)
				if !st.Ok() || again != first {
					t.Errorf("inode %d, flags %#x: OPEN again: %+v, %v, want %+v", ino, flags, again, st, first)
				}
				other, _ := tr.testOpen(102, ino, flags)
				if other.Fh == first.Fh || other.OpenFlags != first.OpenFlags || other.BackingID != first.BackingID {
					t.Errorf("inode %d, flags %#x: another OPEN: %+v after %+v", ino, flags, other, first)
				}
				tr.testRelease(104, ino, other.Fh)
				tr.testRelease(104|resent, ino, other.Fh)
				if after := fmt.Sprint(usages(tr.handles), k.live, k.next); after != before {
					t.Errorf("inode %d, flags %#x: %s became %s", ino, flags, before, after)
				}
				tr.testRelease(106, ino, first.Fh)
				next, _ := tr.testOpen(108, ino, flags) // in the slot just freed
				tr.testRelease(106|resent, ino, first.Fh)
				if u, _ := tr.handles.usage(ino); u.Cached+u.Direct+u.Passthrough != 1 {
					t.Errorf("inode %d, flags %#x: RELEASE again left %+v", ino, flags, u)
				}
				tr.testRelease(110, ino, next.Fh)
				if len(k.live) != 0 {
					t.Errorf("inode %d, flags %#x: backing files left: %v", ino, flags, k.live)
				}
			}
		}
	}
	if n := tr.handles.free(); n != maxHandles {
		t.Errorf("%d slots are free of %d", n, maxHandles)
	}
}

func TestModes(t *testing.T) {
	disk := diskFile(t, randomBytes(4096, 1))
	tr, k := testTree(t, disk)
	const od = unix.O_DIRECT
	unique := uint64(2)
	open := func(flags, want uint32) fuse.OpenOut {
		t.Helper()
		unique += 2
		out, st := tr.testOpen(unique, 2, flags)
		if got := out.OpenFlags & (fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO); !st.Ok() || got != want {
			t.Fatalf("open: %v, flags %#x, want %#x", st, got, want)
		}
		return out
	}
	release := func(o fuse.OpenOut) { unique += 2; tr.testRelease(unique, 2, o.Fh) }

	a := open(0, 0)
	b := open(od, fuse.FOPEN_DIRECT_IO)
	disk.ready.Store(true)
	c := open(0, 0) // a is cached
	release(a)
	d := open(0, 0) // c is
	release(c)
	release(d)
	release(open(0, 0)) // b is direct
	release(b)
	e := open(0, fuse.FOPEN_PASSTHROUGH)
	disk.ready.Store(false)
	f := open(0, fuse.FOPEN_PASSTHROUGH) // no way back while e is open
	if e.BackingID != f.BackingID || len(k.live) != 1 {
		t.Errorf("backing ids %d and %d, live %v", e.BackingID, f.BackingID, k.live)
	}
	release(e)
	release(f)
	if len(k.live) != 0 {
		t.Errorf("live %v", k.live)
	}
	release(open(0, 0))
	for _, errno := range []unix.Errno{unix.ELOOP, unix.EPERM} {
		disk.ready.Store(true)
		k.errno = errno
		release(open(0, 0))
		k.errno = 0
		release(open(0, 0)) // it is not tried again
		tr.nodes[0].noBacking = false
	}
	if tr.backing.Load() {
		t.Error("EPERM did not end passthrough for all files")
	}
}

func TestHandlesFull(t *testing.T) {
	disk := diskFile(t, randomBytes(4096, 1))
	disk.ready.Store(true)
	tr, k := testTree(t, disk, BytesContent(make([]byte, 4096)))
	for i := range uint64(maxHandles) {
		if _, st := tr.testOpen(2+2*i, 3, 0); !st.Ok() {
			t.Fatalf("open %d: %v", i, st)
		}
	}
	if _, st := tr.testOpen(1<<40, 2, 0); st != fuse.Status(unix.ENFILE) {
		t.Errorf("one too many: %v", st)
	}
	if len(k.live) != 0 {
		t.Errorf("backing files left: %v", k.live)
	}
}

func TestWrongBackingFile(t *testing.T) {
	disk := diskFile(t, randomBytes(4096, 1))
	disk.ready.Store(true)
	tr, k := testTree(t, disk)
	check(t, unix.Truncate(disk.file.Name(), 4095))
	if out, st := tr.testOpen(2, 2, 0); !st.Ok() || out.OpenFlags&fuse.FOPEN_PASSTHROUGH != 0 || k.next != 0 {
		t.Errorf("a short file: %v, %+v", st, out)
	}
}

func TestDaemonRefusesWrites(t *testing.T) {
	tr, _ := testTree(t, BytesContent(make([]byte, 4096)))
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC} {
		if _, st := tr.testOpen(2, 2, flags); st != fuse.EROFS {
			t.Errorf("flags %#x: %v", flags, st)
		}
	}
	if _, st := tr.testOpen(2, 1, 0); st != fuse.EISDIR {
		t.Errorf("the directory: %v", st)
	}
}
