package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/tier"
)

// TestReadsEqualFlatCopy reads random ranges of every kind of file, from
// registries with and without ranges, from many goroutines.
func TestReadsEqualFlatCopy(t *testing.T) { readsEqualFlatCopy(t, kinds) }

func readsEqualFlatCopy(t *testing.T, kinds []kind) {
	reads := 40
	if tier.Shorter() > 1 {
		reads = 20
	}
	for _, k := range kinds {
		size := 3<<20 + 12345
		if k.name == "large frame" {
			size = disk.WholeLimit + 1<<20
		}
		made := &fakeSource{}
		a := makeFile(t, newRand(t), made, k, size)
		for _, noRange := range []bool{false, true} {
			name := k.name
			if noRange {
				name += ", no ranges"
			}
			t.Run(name, func(t *testing.T) {
				rng := newRand(t)
				src := &fakeSource{noRange: noRange, blobs: made.blobs}
				h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
				var wg sync.WaitGroup
				for range 8 {
					seed := rng.Uint64()
					wg.Go(func() {
						x := seed
						for range reads {
							x = x*6364136223846793005 + 1442695040888963407
							off := int(x>>20) % len(a.flat)
							checkRead(t, h, a.flat, off, 1+int(x>>40)%400_000)
						}
					})
				}
				wg.Wait()
				checkRead(t, h, a.flat, 0, len(a.flat))
				var stored int64
				for _, p := range a.file.Parts {
					stored += p.StoredSize
				}
				n, fetched := src.reset()
				if fetched > stored {
					t.Errorf("fetched %d bytes of a file of %d", fetched, stored)
				}
				if blobs := a.blobs(); noRange && n > blobs {
					t.Errorf("%d requests for %d blobs that come whole", n, blobs)
				}
				eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
				if h.Cached() != int64(size) || !h.Verified() || !h.Complete() {
					t.Errorf("cached %d of %d, verified %v, complete %v", h.Cached(), size, h.Verified(), h.Complete())
				}
				b, _ := h.Backing()
				onDisk := readBuffer(len(a.flat) + 1)
				defer giveBack(onDisk)
				if n, err := b.ReadAt(onDisk, 0); err != io.EOF || !same(onDisk[:n], a.flat) {
					t.Errorf("file on disk differs from the file (%d bytes, %v)", n, err)
				}
			})
		}
	}
}

func TestNothingIsFetchedTwice(t *testing.T) {
	for _, k := range kinds[:4] {
		t.Run(k.name, func(t *testing.T) {
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, k, 3<<20)
			dir := t.TempDir()
			c := openCache(t, dir, Options{})
			h := openFile(t, c, a.file, src)
			segs := a.file.Map.Segments()
			off := int(segs[len(segs)/2].Offset)
			checkRead(t, h, a.flat, off, 4096)
			n, fetched := src.reset()
			if n == 0 || n > 2 || fetched > 2<<20 {
				t.Errorf("a read of 4 KiB cost %d requests and %d bytes", n, fetched)
			}
			checkRead(t, h, a.flat, off, 4096)
			_ = h.Close()
			_ = c.Close()
			h = openFile(t, openCache(t, dir, Options{}), a.file, src)
			checkRead(t, h, a.flat, off, 4096)
			if n, _ := src.reset(); n != 0 {
				t.Errorf("read again after a restart: %d requests", n)
			}
		})
	}
}

// TestManyReadersOneFetch has 50 readers of one range in two caches on one
// directory, as two processes have them.
func TestManyReadersOneFetch(t *testing.T) {
	src := &fakeSource{gate: make(chan struct{})}
	a := makeFile(t, newRand(t), src, kinds[1], 4<<20)
	dir := t.TempDir()
	files := []*File{
		openFile(t, openCache(t, dir, Options{}), a.file, src),
		openFile(t, openCache(t, dir, Options{}), a.file, src),
	}
	var wg sync.WaitGroup
	off := int(a.file.Map.Segments()[a.file.Map.Len()/2].Offset)
	for i := range 50 {
		wg.Go(func() { checkRead(t, files[i%2], a.flat, off, 1000) })
	}
	eventually(t, "all readers wait", func() bool { return waiters(files[0])+waiters(files[1]) == 50 })
	close(src.gate)
	wg.Wait()
	if n, fetched := src.reset(); n != 1 || fetched > 512<<10 {
		t.Errorf("%d requests, %d bytes", n, fetched)
	}
}

func waiters(h *File) (n int) {
	h.entry.flights.mu.Lock()
	defer h.entry.flights.mu.Unlock()
	for _, fl := range h.entry.flights.byPiece {
		n = max(n, fl.waiters)
	}
	return n
}

// TestStoppedPeerBlocksNobody claims pieces as a process would that was
// stopped just then.
func TestStoppedPeerBlocksNobody(t *testing.T) {
	for _, k := range []kind{kinds[0], kinds[4]} {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, k, disk.WholeLimit+1<<20)
		dir := t.TempDir()
		stopped := openFile(t, openCache(t, dir, Options{}), a.file, src)
		if ok, err := stopped.entry.state.TryLockPieces(0, stopped.entry.grid.Pieces()); !ok || err != nil {
			t.Fatal(ok, err)
		}
		h := openFile(t, openCache(t, dir, Options{patience: 50 * time.Millisecond}), a.file, src)
		checkRead(t, h, a.flat, 1<<20, 100_000)
	}
}

// TestLeavingReader gives up a read; the fetch goes on for another.
func TestLeavingReader(t *testing.T) {
	src := &fakeSource{gate: make(chan struct{})}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	ctx, cancel := context.WithCancel(context.Background())
	left, stayed := make(chan error, 1), make(chan error, 1)
	off := a.file.Map.Segments()[0].Offset
	go func() {
		_, err := h.ReadAt(ctx, make([]byte, 10), off)
		left <- err
	}()
	go func() {
		_, err := h.ReadAt(context.Background(), make([]byte, 10), off)
		stayed <- err
	}()
	eventually(t, "both wait", func() bool { return waiters(h) == 2 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	close(src.gate)
	if err := <-stayed; err != nil {
		t.Errorf("other read: %v", err)
	}
	if n, _ := src.reset(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestBrokenFetchGoesOn cuts every other body short.
func TestBrokenFetchGoesOn(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		src := &fakeSource{}
		var calls int
		src.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
			if calls++; calls%2 == 1 {
				return b[:len(b)/3], errCut
			}
			return b, nil
		}
		a := makeFile(t, newRand(t), src, k, 3<<20)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
	}
}

func TestReadTimeout(t *testing.T) {
	t.Parallel()
	src := &fakeSource{mangle: func(string, int64, []byte) ([]byte, error) { return nil, errCut }}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{ReadTimeout: 2 * time.Second}), a.file, src)
	_, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0)
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, errCut) {
		t.Errorf("error %v, want a timeout with its cause", err)
	}
	src.mu.Lock()
	src.mangle = nil
	src.mu.Unlock()
	// A try that was under way still fails, and the next waits for longer
	// than a read does.
	eventually(t, "a read succeeds", func() bool {
		_, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0)
		return err == nil || err == io.EOF
	})
	checkRead(t, h, a.flat, 0, len(a.flat))
}

func TestFinalErrorEndsRead(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	blobs := src.blobs
	src.blobs = nil
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	if _, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0); !errors.As(err, &finalError{}) {
		t.Errorf("error %v", err)
	}
	src.mu.Lock()
	src.blobs = blobs
	src.mu.Unlock()
	// A request that was under way may still end the read that joins it.
	eventually(t, "a read succeeds", func() bool {
		_, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0)
		return err == nil || err == io.EOF
	})
	checkRead(t, h, a.flat, 0, len(a.flat))
}

// TestWrongBytesAreNotHandedOut flips a bit in everything that is fetched
// of a file: blobs that are one piece, pieces with digests, and chunks of
// all sizes. Another file does not notice.
func TestWrongBytesAreNotHandedOut(t *testing.T) {
	t.Parallel()
	large := kind{name: "largest chunks", chunk: disk.WholeLimit}
	for _, k := range append(kinds[1:4:4], large) {
		for _, size := range []int{256 << 10, 1 << 20, 3 << 20, disk.WholeLimit + 1<<20} {
			if (size > 3<<20) != (k.name == large.name) {
				continue
			}
			t.Run(fmt.Sprint(k.name, size), func(t *testing.T) {
				t.Parallel() // it waits between tries
				src := &fakeSource{}
				good := makeFile(t, newRand(t), src, k, 1<<20)
				a := makeFile(t, newRand(t), src, k, size)
				src.mangle = func(digest string, _ int64, b []byte) ([]byte, error) {
					if digest != good.file.Parts[0].Digest {
						for i := 0; i < len(b); i += 4096 {
							b[i] ^= 1
						}
					}
					return b, nil
				}
				c := openCache(t, t.TempDir(), Options{})
				h := openFile(t, c, a.file, src)
				at := a.file.Map.Segments()[0].Offset
				if n, err := h.ReadAt(context.Background(), make([]byte, 1), at); !errors.Is(err, layout.ErrContent) {
					t.Errorf("%d bytes, error %v", n, err)
				}
				if n, _ := src.reset(); n != 2 {
					t.Errorf("%d requests, want one and another try", n)
				}
				if _, err := h.ReadAt(context.Background(), make([]byte, len(a.flat)), 0); !errors.Is(err, layout.ErrContent) {
					t.Errorf("error %v", err)
				}
				checkRead(t, openFile(t, c, good.file, src), good.flat, 0, len(good.flat))
				if h.Verified() || h.Complete() {
					t.Error("wrong bytes are in the cache")
				}
				if _, err := h.ReadAt(context.Background(), make([]byte, 1), at); !errors.Is(err, layout.ErrContent) {
					t.Errorf("read again: %v", err)
				}
			})
		}
	}
}

// TestWrongWhole has a blob that can be seen to be wrong only when it is
// complete: it leaves the cache, and no stream of it ends well.
func TestWrongWhole(t *testing.T) {
	for _, k := range []kind{kinds[0], kinds[4]} {
		t.Run(k.name, func(t *testing.T) {
			src := &fakeSource{}
			size := disk.WholeLimit + 1<<20
			a := makeFile(t, newRand(t), src, k, size)
			for _, b := range src.blobs {
				b[0] ^= 1 // a raw byte, or the frame's magic
				if k.zstd {
					b[0] ^= 1
					b[len(b)-1] ^= 1 // the checksum
				}
			}
			h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
			if _, err := readPayload(h); !errors.Is(err, layout.ErrContent) {
				t.Errorf("reads ended with %v", err)
			}
			// It may be found out while the reader is half through: what he
			// reads after that comes anew, and is not complete.
			eventually(t, "what is wrong is gone from the cache", func() bool { return !h.entry.state.Has(0) })
			if _, ok := h.Backing(); ok {
				t.Error("handed to the kernel")
			}
		})
	}
}

// TestOutOfService has a blob without piece digests that is wrong wherever
// it comes from: its bytes reach readers until it is complete, twice, and
// then no more.
func TestOutOfService(t *testing.T) {
	src := &fakeSource{mangle: func(_ string, _ int64, b []byte) ([]byte, error) {
		b[0] ^= 1
		return b, nil
	}}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	var told atomic.Int64
	h.OnDrop(func(int64, int64) { told.Add(1) })
	p := make([]byte, len(a.flat))
	for i := range int64(strikesMost) {
		// The read may be overtaken by the hashing of what it waited for.
		if _, err := h.ReadAt(context.Background(), p, 0); err != nil && !errors.Is(err, layout.ErrContent) {
			t.Fatal(err)
		}
		eventually(t, "it is found out and told", func() bool { return told.Load() > i })
	}
	src.reset()
	if _, err := h.ReadAt(context.Background(), p, 0); !errors.Is(err, layout.ErrContent) {
		t.Errorf("read of what is out of service: %v", err)
	}
	if n, _ := src.reset(); n != 0 {
		t.Errorf("%d more requests for it", n)
	}
}

// TestStreamVouchesForItself has wrong pieces in the cache, from a source
// that honours ranges and lies, and then the right blob as a stream.
func TestStreamVouchesForItself(t *testing.T) {
	src := &fakeSource{mangle: func(_ string, _ int64, b []byte) ([]byte, error) {
		b[0] ^= 1
		return b, nil
	}}
	a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, src)
	if _, err := h.ReadAt(context.Background(), make([]byte, 4096), a.file.Map.Segments()[3].Offset); err != nil {
		t.Fatal(err)
	}
	_ = h.Close()
	_ = c.Close()
	right := &fakeSource{blobs: src.blobs, noRange: true}
	h = openFile(t, openCache(t, dir, Options{}), a.file, right)
	last := a.file.Map.Segments()[a.file.Map.Len()-1]
	checkRead(t, h, a.flat, int(last.Offset), 1)
	eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
	checkRead(t, h, a.flat, 0, len(a.flat))
}

// TestPresentReadAllocatesNothing reads what is present, of a file that is
// sealed and of one that is not.
func TestPresentReadAllocatesNothing(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		to := len(a.flat) / 2
		if sealed {
			to = len(a.flat)
		}
		if _, err := h.ReadExactly(t.Context(), make([]byte, to), 0); err != nil {
			t.Fatal(err)
		}
		if sealed {
			eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
		}
		p, off := make([]byte, 4096), 0
		n := testing.AllocsPerRun(100, func() {
			if _, err := h.ReadAt(context.Background(), p, int64(off)); err != nil {
				t.Fatal(err)
			}
			off = (off + 7*4096) % (to - len(p))
		})
		if n != 0 && !underRace {
			t.Errorf("sealed %v: %v allocations a read", sealed, n)
		}
	}
}
