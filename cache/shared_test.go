package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

// dripping is a source whose bodies come slowly.
type dripping struct {
	*fakeSource
	pause time.Duration // before each 32 KiB
	delay time.Duration // before each answer
}

func (d *dripping) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	<-time.After(d.delay)
	body, whole, err := d.fakeSource.OpenBlob(ctx, digest, size, off, n)
	if err != nil {
		return nil, false, err
	}
	return &dripBody{body, d.pause}, whole, nil
}

type dripBody struct {
	io.ReadCloser
	pause time.Duration
}

func (d *dripBody) Read(p []byte) (int, error) {
	<-time.After(d.pause)
	return d.ReadCloser.Read(p[:min(len(p), 32<<10)])
}

// TestTwoProcessesOneStream has one process stream a large frame and
// another read it in many places: nobody waits for a stream that is not.
func TestTwoProcessesOneStream(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[4], disk.WholeLimit+8<<20)
	dir := t.TempDir()
	first := openFile(t, openCache(t, dir, Options{}), a.file, &dripping{src, 5 * time.Millisecond, 0})
	second := openFile(t, openCache(t, dir, Options{}), a.file, src)
	first.Prefetch()
	eventually(t, "the first streams", func() bool { return first.Cached() > 1<<20 })
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			p := make([]byte, 512<<10)
			for off := g * 7 << 20; off < min(len(a.flat), (g+1)*7<<20); off += len(p) {
				n, err := second.ReadAt(ctx, p, int64(off))
				if err != nil && err != io.EOF {
					t.Errorf("at %d: %v; all present: %v", off, err, second.Complete())
					return
				}
				if !bytes.Equal(p[:n], a.flat[off:off+n]) {
					t.Errorf("at %d: wrong bytes", off)
				}
			}
		})
	}
	wg.Wait()
}

// TestSmallBudget has pieces larger than all the memory there is for them.
func TestSmallBudget(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kind{name: "large pieces", pieces: 16 << 20}, 33<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{Memory: 8 << 20}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
}

// TestFrameHoldsMore has a large frame that decodes to more than its part:
// nothing of it is vouched for.
func TestFrameHoldsMore(t *testing.T) {
	tier.Long(t, "decodes large frames")
	src := &fakeSource{}
	data := make([]byte, disk.WholeLimit+4<<20)
	fillRandom(newRand(t), data)
	stored := encoder().EncodeAll(data, nil)
	n := int64(len(data) - 1<<20)
	f := &layout.File{Name: "x", Map: sparse.Dense(n), Parts: []layout.Part{{
		Digest: src.put(stored), StoredSize: int64(len(stored)), Encoding: layout.Zstd, Length: n,
	}}}
	h := openFile(t, openCache(t, t.TempDir(), Options{}), f, src)
	if _, err := readPayload(h); !errors.Is(err, layout.ErrContent) {
		t.Errorf("reads ended with %v", err)
	}
	if h.Verified() {
		t.Error("it counts as verified")
	}
}

// TestFrameLargerThanCache streams a frame that cannot be kept.
func TestFrameLargerThanCache(t *testing.T) {
	tier.Long(t, "fetches large frames again and again")
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[4], disk.WholeLimit+2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{Size: 8 << 20}), a.file, src)
	got, err := readPayload(h)
	if err != nil || !bytes.Equal(got, a.data) {
		t.Errorf("%d bytes of %d, %v", len(got), len(a.data), err)
	}
	if _, fetched := src.reset(); fetched != a.file.StoredSize() {
		t.Errorf("fetched %d of %d bytes", fetched, a.file.StoredSize())
	}
}

// TestDropIsSeenElsewhere has one process find out that a blob is wrong
// which another took for complete.
func TestDropIsSeenElsewhere(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	bad := &fakeSource{blobs: src.blobs, mangle: func(_ string, off int64, b []byte) ([]byte, error) {
		if off == 0 {
			b[10] ^= 1
		}
		return b, nil
	}}
	dir := t.TempDir()
	first := openFile(t, openCache(t, dir, Options{}), a.file, bad)
	second := openFile(t, openCache(t, dir, Options{}), a.file, src)
	first.entry.asked.Store(true) // neither looks by itself
	second.entry.asked.Store(true)
	p := make([]byte, len(a.flat))
	for _, h := range []*File{first, second} {
		if _, err := h.ReadAt(context.Background(), p, 0); err != nil {
			t.Fatal(err)
		}
	}
	first.entry.asked.Store(false)
	first.entry.checkComplete()
	eventually(t, "the first drops it", func() bool { return !first.Complete() })
	checkRead(t, second, a.flat, 0, len(a.flat))
}

// TestTwoEvictors has a second one come to a file that the first removed
// and that was made again meanwhile.
func TestTwoEvictors(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	key := h.entry.disk.Key
	_ = h.Close()
	late, err := os.OpenFile(filepath.Join(dir, disk.Files, key+".state"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := c.dir.Remove(key); err != nil {
		t.Fatal(err)
	}
	h = openFile(t, c, a.file, src)
	if ok, err := disk.TryLock(late, unix.F_WRLCK, disk.LockInUse, 1); !ok || err != nil {
		t.Fatalf("the old file is locked: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(late.Fd()), &st); st.Nlink != 0 || err != nil {
		t.Errorf("the second evictor takes a file in use for the one it found: %v", err)
	}
	// Whatever becomes of the name, the kernel gets what readers get.
	checkRead(t, h, a.flat, 0, len(a.flat))
	eventually(t, "it is sealed", func() bool { return h.entry.state.Sealed() })
	if err := os.Remove(filepath.Join(dir, disk.Files, key+".data")); err != nil {
		t.Fatal(err)
	}
	b, ok := h.Backing()
	if !ok {
		t.Fatal("no backing file")
	}
	if got, err := io.ReadAll(io.NewSectionReader(b, 0, 1<<40)); err != nil || !bytes.Equal(got, a.flat) {
		t.Errorf("the backing file is another one: %v", err)
	}
}

// TestPrefetchOutlivesAPeer has another process hold one piece of what is
// prefetched, for a moment.
func TestPrefetchOutlivesAPeer(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 8<<20)
	dir := t.TempDir()
	peer := openFile(t, openCache(t, dir, Options{}), a.file, src)
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	if ok, err := peer.entry.state.TryLockPieces(0, 1); !ok || err != nil {
		t.Fatal(ok, err)
	}
	h.Prefetch()
	eventually(t, "what is free comes", func() bool { return h.Cached() > 4<<20 })
	peer.entry.state.UnlockPieces(0, 1)
	eventually(t, "the rest comes", h.Complete)
}

// TestSlowLinkIsLeftAlone has requests that take much longer than readers
// are patient, and that move: they are not given up.
func TestSlowLinkIsLeftAlone(t *testing.T) {
	tier.Long(t, "waits for a slow link")
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kind{name: "chunks", chunk: 1 << 20}, 2<<20)
	synctest.Test(t, func(t *testing.T) {
		slow := &dripping{src, 250 * time.Millisecond, 750 * time.Millisecond}
		h := openFile(t, openCache(t, t.TempDir(), Options{Tardy: usual}), a.file, slow)
		last := a.file.Map.Segments()[a.file.Map.Len()-1]
		checkRead(t, h, a.flat, int(last.Offset), 1) // from now on it is known how long an answer takes
		src.reset()
		checkRead(t, h, a.flat, int(a.file.Map.Segments()[0].Offset), 1)
		if n, _ := src.reset(); n != 1 {
			t.Errorf("%d requests for one chunk", n)
		}
	})
}

// TestHostileStoredSize has a part of a few bytes that is said to take a
// tebibyte in the registry.
func TestHostileStoredSize(t *testing.T) {
	g := disk.NewGrid(&layout.File{Map: sparse.Dense(1000), Parts: []layout.Part{{Encoding: layout.Zstd, StoredSize: 1 << 40, Length: 1000}}})
	if g.Whole(0) {
		t.Error("it would be fetched into memory as a whole")
	}
}
