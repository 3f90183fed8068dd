package cache

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

// TestStreamGoesOn breaks the stream of a large frame again and again: the
// decoder goes on where it was, and no byte is fetched twice.
func TestStreamGoesOn(t *testing.T) {
	src := &fakeSource{}
	const step = 512 << 10
	src.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
		if len(b) > step {
			return b[:step], errCut
		}
		return b, nil
	}
	a := makeFile(t, newRand(t), src, kinds[4], disk.WholeLimit+1<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	stored := a.file.Parts[0].StoredSize
	n, fetched := src.reset()
	if want := int((stored + step - 1) / step); fetched != stored || n != want || n < 4 {
		t.Errorf("%d bytes in %d requests for %d bytes", fetched, n, stored)
	}
	eventually(t, "the file is sealed", func() bool { _, ok := h.Backing(); return ok })
}

// TestStreamBreaksWithoutRange breaks the stream of a source that ignores
// ranges, or begins to: it begins again, and reads are right.
func TestStreamBreaksWithoutRange(t *testing.T) {
	tier.Long(t, "fetches large frames again and again")
	for _, noRange := range []bool{true, false} {
		src := &fakeSource{noRange: noRange}
		var calls atomic.Int64
		src.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
			if calls.Add(1) < 3 {
				src.noRange = true // under the source's lock
				return b[:len(b)/2], errCut
			}
			return b, nil
		}
		a := makeFile(t, newRand(t), src, kinds[4], disk.WholeLimit+1<<20)
		h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
	}
}

// TestWindowsAreBounded reads several frames whose decoders want as much
// memory as they may: they go one after the other.
func TestWindowsAreBounded(t *testing.T) {
	tier.Long(t, "decodes frames with the largest windows")
	src := &fakeSource{gate: make(chan struct{}, 100)}
	data := make([]byte, disk.WholeLimit+1<<20)
	c := openCache(t, t.TempDir(), Options{})
	var files []*File
	var flats [][]byte
	for range 3 {
		fillRandom(newRand(t), data)
		enc, err := zstd.NewWriter(nil, zstd.WithWindowSize(zstdframe.MaxWindow))
		if err != nil {
			t.Fatal(err)
		}
		var stored bytes.Buffer // as a stream: the size is not known, so the window counts
		enc.Reset(&stored)
		if _, err := enc.Write(data); err != nil {
			t.Fatal(err)
		}
		_ = enc.Close()
		f := &layout.File{Name: "x", Map: sparse.Dense(int64(len(data))), Parts: []layout.Part{{
			Digest: src.put(stored.Bytes()), StoredSize: int64(stored.Len()), Encoding: layout.Zstd, Length: int64(len(data)),
		}}}
		if w := zstdframe.Window(stored.Bytes()); w != zstdframe.MaxWindow {
			t.Fatalf("the frame wants %d bytes", w)
		}
		files, flats = append(files, openFile(t, c, f, src)), append(flats, bytes.Clone(data))
	}
	if !c.windows.bytes.TryAcquire(1) { // somebody's decoder
		t.Fatal("a window is in use")
	}
	for range 3 {
		src.gate <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	for _, f := range files {
		if _, err := f.ReadAt(ctx, make([]byte, 1), 0); err == nil {
			t.Error("a frame is decoded although there is no room for its window")
		}
	}
	c.windows.bytes.Release(1)
	for i, f := range files {
		checkRead(t, f, flats[i], 0, len(data))
	}
}
