package cache

import (
	"bytes"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/test/tier"
)

// stuckDisk keeps work of one kind waiting until it is let go.
type stuckDisk struct {
	work  string
	began chan struct{} // closed when it is waiting
	free  chan struct{}
	once  sync.Once
	freed sync.Once
}

func (d *stuckDisk) release() { d.freed.Do(func() { close(d.free) }) }

func newStuckDisk(work string) *stuckDisk {
	return &stuckDisk{work: work, began: make(chan struct{}), free: make(chan struct{})}
}

func (d *stuckDisk) before(work string) {
	if work == d.work {
		d.once.Do(func() { close(d.began) })
		<-d.free
	}
}

// unhurried reads all of a file while the disk is stuck.
func unhurried(t *testing.T, h *File, a artifact, disk *stuckDisk) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		checkRead(t, h, a.flat, 0, len(a.flat))
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("the reader waits for the disk")
		disk.release()
		<-done
	}
}

// awaitIndex has the index read, so that a job of a cache with a short grace
// finds what there is to copy.
func awaitIndex(t *testing.T, c *Cache) {
	t.Helper()
	if !c.index.await(t.Context(), time.Minute) {
		t.Fatal("there is no index")
	}
}

// TestMeasuringKeepsNoReaderWaiting has the measuring of the cache get
// stuck: readers get what is fetched, it is fetched once, and kept when the
// disk has answered.
func TestMeasuringKeepsNoReaderWaiting(t *testing.T) {
	for _, k := range kinds {
		made := &fakeSource{}
		a := makeFile(t, newRand(t), made, k, 4<<20)
		for _, noRange := range []bool{false, true} {
			src := &fakeSource{noRange: noRange, blobs: made.blobs}
			disk := newStuckDisk("measure")
			c := openCache(t, t.TempDir(), Options{before: disk.before, grace: time.Millisecond})
			h := openFile(t, c, a.file, src)
			unhurried(t, h, a, disk)
			<-disk.began
			if h.Cached() != 0 {
				t.Errorf("%s: %d bytes kept, and it is not known whether there is room", k.name, h.Cached())
			}
			disk.release()
			eventually(t, "what was read is kept and sealed", func() bool { _, ok := h.Backing(); return ok })
			if _, fetched := src.reset(); fetched > a.file.StoredSize() {
				t.Errorf("%s: %d bytes fetched of %d", k.name, fetched, a.file.StoredSize())
			}
		}
	}
}

// TestIndexKeepsNoReaderWaiting has the index of parts get stuck while it
// is made, and then a donor while it is opened: readers get the bytes from
// the registry.
func TestIndexKeepsNoReaderWaiting(t *testing.T) {
	for _, work := range []string{"index", "donor"} {
		src := &fakeSource{}
		rng := newRand(t)
		dir := t.TempDir()
		a := makeFile(t, rng, src, kinds[2], 4<<20)
		c := openCache(t, dir, Options{})
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		_ = h.Close()
		_ = c.Close()
		src.reset()

		f := *a.file
		m, flat := spread(t, rng, a.data)
		f.Map = m
		disk := newStuckDisk(work)
		c = openCache(t, dir, Options{before: disk.before, grace: time.Millisecond})
		h = openFile(t, c, &f, src)
		if work == "index" {
			unhurried(t, h, artifact{&f, flat, a.data}, disk)
			if n, _ := src.reset(); n == 0 {
				t.Error("the index is not stuck")
			}
			disk.release()
			continue
		}
		awaitIndex(t, c)
		// The job that opens the donor is stuck with the disk. Those of
		// other parts are not, nor is another file.
		chunk := func(i int) (off int) {
			for run := range m.Payload(int64(i)<<20, 1) {
				off = int(run.Offset)
			}
			return off
		}
		first := make(chan struct{})
		go func() {
			defer close(first)
			checkRead(t, h, flat, chunk(0), 1)
		}()
		<-disk.began
		checkRead(t, h, flat, chunk(2), 1)
		b := makeFile(t, rng, src, kinds[0], 2<<20)
		unhurried(t, openFile(t, c, b.file, src), b, disk)
		disk.release()
		<-first
	}
}

// TestHeldDonor has a process stopped that has a donor's locks: what it
// holds is fetched at once, and not waited for.
func TestHeldDonor(t *testing.T) {
	src := &fakeSource{}
	rng := newRand(t)
	dir := t.TempDir()
	a := makeFile(t, rng, src, kinds[2], 2<<20)
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	_ = h.Close()
	f := *a.file
	m, flat := spread(t, rng, a.data)
	f.Map = m
	h = openFile(t, c, &f, src)
	stopWithLock(t, filepath.Join(dir, disk.Files, a.file.Key()+".state"))
	began := time.Now()
	checkRead(t, h, flat, 0, len(flat))
	if took := time.Since(began); took >= disk.LockPatience {
		t.Errorf("it took %v", took)
	}
}

// TestOpensKeepNoOpenWaiting opens a file while the open of another has to
// wait for a process that is stopped.
func TestOpensKeepNoOpenWaiting(t *testing.T) {
	tier.Long(t, "waits for slow answers")
	src := &fakeSource{}
	rng := newRand(t)
	a, b := makeFile(t, rng, src, kinds[0], 1<<20), makeFile(t, rng, src, kinds[2], 2<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	stopWithLock(t, filepath.Join(dir, disk.Files, a.file.Key()+".state"))
	opened := make(chan error, 2)
	for range 2 { // of the same file, which is opened once
		go func() {
			f, err := c.File(a.file, src)
			if err == nil {
				err = f.Close()
			}
			opened <- err
		}()
	}
	eventually(t, "the first is being opened", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.opening) > 0
	})
	h := openFile(t, c, b.file, src)
	checkRead(t, h, b.flat, 0, len(b.flat))
	select {
	case <-opened:
		t.Error("the second file waited for the first")
	default:
	}
	for range 2 {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
}

// TestQuotaHoldsWhileMeasuring writes from many files at once, while each
// look at the disk takes long.
func TestQuotaHoldsWhileMeasuring(t *testing.T) {
	const quota = 24 << 20
	src := &fakeSource{}
	dir := t.TempDir()
	slow := func(work string) {
		if work == "measure" {
			_, _ = unix.Poll(nil, 20) // a look at a large cache
		}
	}
	c := openCache(t, dir, Options{Size: quota, before: slow, grace: time.Millisecond})
	var wg sync.WaitGroup
	rng := newRand(t)
	var files []artifact
	for i := range 6 {
		files = append(files, makeFile(t, rng, src, kinds[i%4], 6<<20+i<<10))
	}
	for _, a := range files {
		wg.Go(func() {
			h, err := c.File(a.file, src)
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Close()
			for off := 0; off < len(a.flat); off += 1 << 20 {
				checkRead(t, h, a.flat, off, 1<<20)
				if n := diskUse(t, dir); n > quota {
					t.Errorf("%d bytes on disk, %d allowed", n, quota)
				}
			}
		})
	}
	wg.Wait()
}

// TestWrongBytesAreNotKeptLate has bytes of a blob come while the cache is
// measured, and be found wrong before that has ended: they are not kept
// then, and what comes in their place is right.
func TestWrongBytesAreNotKeptLate(t *testing.T) {
	src := &fakeSource{noRange: true}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	src.mangle = wrongIn(5)
	disk := newStuckDisk("measure")
	c := openCache(t, t.TempDir(), Options{before: disk.before, grace: time.Millisecond})
	h := openFile(t, c, a.file, src)
	at := a.file.Map.Segments()[0].Offset
	_, _ = h.ReadAt(t.Context(), make([]byte, 10), at) // what comes of it may be wrong
	eventually(t, "the blob is found wrong", func() bool {
		return h.entry.verdicts.struck(0)
	})
	src.mu.Lock()
	src.mangle = nil
	src.mu.Unlock()
	disk.release()
	eventually(t, "nothing waits to be kept", func() bool {
		done, ok := h.entry.held.BeginLater(overlay.Size) // all that may wait
		if ok {
			done()
		}
		return ok
	})
	checkRead(t, h, a.flat, int(at), 10)
	checkRead(t, h, a.flat, 0, len(a.flat))
	eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
}

// TestHandedWithoutRoomToWait has bytes without a digest of their own come while
// the cache is measured, and so much wait to be written that they are not kept:
// what readers got is noted all the same.
func TestHandedWithoutRoomToWait(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20) // more than one piece
	disk := newStuckDisk("measure")
	c := openCache(t, t.TempDir(), Options{before: disk.before, grace: time.Millisecond})
	defer disk.release()
	h := openFile(t, c, a.file, src)
	done, ok := h.entry.held.BeginLater(overlay.Size)
	if !ok {
		t.Fatal("something waits already")
	}
	defer done()
	checkRead(t, h, a.flat, int(a.file.Map.Segments()[0].Offset), 10)
	eventually(t, "it is noted what readers got", func() bool {
		_, other := h.entry.state.OtherHanded(0, 1) // the checksum of nothing in it
		return other
	})
}

// TestFillerCopiesWhileMeasuring fills a file from another that the cache
// has, while it is not known yet whether there is room.
func TestFillerCopiesWhileMeasuring(t *testing.T) {
	src := &fakeSource{}
	rng := newRand(t)
	dir := t.TempDir()
	a := makeFile(t, rng, src, kinds[2], 2<<20)
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	_ = h.Close()
	_ = c.Close()

	f := *a.file
	f.Map, _ = spread(t, rng, a.data)
	slow := func(work string) {
		if work == "measure" {
			_, _ = unix.Poll(nil, 100)
		}
	}
	c = openCache(t, dir, Options{before: slow, grace: time.Millisecond})
	awaitIndex(t, c)
	k := openFile(t, c, &f, src).Filler()
	release, err := k.Claim(t.Context(), 0, 0, f.Parts[0].Length)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	got := make([]byte, f.Parts[0].Length)
	if !k.Load(0, 0, got) || !bytes.Equal(got, a.data[:len(got)]) {
		t.Error("what another file has must be fetched")
	}
}

// TestTightWhileMeasuring has the measuring take long: until it has ended,
// no more is fetched ahead than is held in memory.
func TestTightWhileMeasuring(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 1<<20)
	disk := newStuckDisk("measure")
	c := openCache(t, t.TempDir(), Options{before: disk.before, grace: time.Millisecond})
	h := openFile(t, c, a.file, src)
	if c.quota.Tight() {
		t.Error("before it began")
	}
	unhurried(t, h, a, disk)
	eventually(t, "it takes long", c.quota.Tight)
	disk.release()
	eventually(t, "it has ended", func() bool { return !c.quota.Tight() })
}

// TestPrefetchWaitsForMeasuring has the measuring take long while a file is
// prefetched that is more than memory holds: no request begins until it is
// known whether there is room, all is kept then, and nothing fetched twice.
// Of the room that was known before, some may be left, for less than a part.
func TestPrefetchWaitsForMeasuring(t *testing.T) {
	for _, k := range []struct {
		kind kind
		size int
		look int64 // the one that takes long
	}{
		{kinds[0], 96 << 20, 1},
		{kind{name: "chunks", chunk: 8 << 20}, 128 << 20, 1},
		{kind{name: "some room", chunk: 6 << 20}, 120 << 20, 2},
	} {
		t.Run(k.kind.name, func(t *testing.T) {
			if k.look > 1 {
				tier.Long(t, "prefetches more than memory holds")
			}
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, k.kind, k.size)
			disk := newStuckDisk("measure")
			defer disk.release()
			var looks atomic.Int64
			// The grace is for the looks after that one, on a slow machine.
			c := openCache(t, t.TempDir(), Options{Size: 1 << 30, grace: 200 * time.Millisecond, before: func(work string) {
				if work == disk.work && looks.Add(1) == k.look {
					disk.before(work)
				}
			}})
			h := openFile(t, c, a.file, src)
			h.Prefetch()
			eventually(t, "it takes long, and nothing runs", func() bool { return c.quota.Tight() && c.queue.count() == 0 })
			_, before := src.reset()
			if size := a.file.StoredSize(); before == 0 || before >= size {
				t.Errorf("%d bytes of %d fetched before it ended", before, size)
			}
			disk.release()
			eventually(t, "all is kept", func() bool { return h.Cached() == a.file.PayloadSize() })
			if _, after := src.reset(); before+after != a.file.StoredSize() {
				t.Errorf("%d and %d bytes fetched of %d", before, after, a.file.StoredSize())
			}
		})
	}
}
