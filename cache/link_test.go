package cache

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// usual is what counts as standing still where nothing else says so.
const usual = 80 * time.Millisecond

// distant is a source that takes time to answer, and leaves every nth
// request standing still.
type distant struct {
	*fakeSource
	mu    sync.Mutex
	delay time.Duration
	nth   int // 0: none
	stall int // bytes that such a request brings
	asked int
}

func (s *distant) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.asked++
	stuck := s.nth > 0 && s.asked%s.nth == 0
	delay := s.delay
	s.mu.Unlock()
	if stuck && s.stall == 0 {
		<-ctx.Done()
	}
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	body, whole, err := s.fakeSource.OpenBlob(ctx, digest, size, off, n)
	if err == nil && stuck {
		body = &stuckBody{body, ctx, s.stall}
	}
	return body, whole, err
}

// stuckBody brings some bytes and then nothing.
type stuckBody struct {
	io.ReadCloser
	ctx  context.Context
	left int
}

func (b *stuckBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// readOn reads a file from its start to its end in small steps, and returns
// how long that and the longest step took.
func readOn(t *testing.T, f *File, flat []byte) (took, longest time.Duration) {
	t.Helper()
	began := time.Now()
	for off := 0; off < len(flat); off += 128 << 10 {
		at := time.Now()
		checkRead(t, f, flat, off, 128<<10)
		longest = max(longest, time.Since(at))
	}
	return time.Since(began), longest
}

// TestStallingRegistry reads 45 MiB while every third request stands still,
// by the clock of the requests alone.
func TestStallingRegistry(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 45<<20)
	for _, stall := range []int{0, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			far := &distant{fakeSource: src, delay: 10 * time.Millisecond, nth: 3, stall: stall}
			c := openCache(t, t.TempDir(), Options{Tardy: usual})
			took, longest := readOn(t, openFile(t, c, a.file, far), a.flat)
			t.Logf("%v in all, %v the longest read, %d requests, %d of them made again", took, longest, far.asked, c.Counts().Retries["slow"])
			if took > 5*time.Second || longest > 500*time.Millisecond {
				t.Errorf("stalled after %d bytes: %v in all, %v the longest read", stall, took, longest)
			}
		})
	}
}

// TestNoStorm has a registry answer in 800 ms instead of 10 from some time
// on, while eight readers read here and there.
func TestNoStorm(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 50<<20)
	var places []int // where data is, two pieces from each other
	for off := range int64(100) {
		for run := range a.file.Map.Payload(off<<19, 1) {
			places = append(places, int(run.Offset))
		}
	}
	synctest.Test(t, func(t *testing.T) {
		far := &distant{fakeSource: src, delay: 10 * time.Millisecond}
		c := openCache(t, t.TempDir(), Options{Tardy: usual})
		f := openFile(t, c, a.file, far)
		read := func(first, last int) (requests int, slow int64) {
			before := c.Counts().Retries["slow"]
			var readers sync.WaitGroup
			for i := range 8 {
				readers.Go(func() {
					for at := first + i; at < last; at += 8 {
						checkRead(t, f, a.flat, places[at*61%100], 4096)
					}
				})
			}
			readers.Wait()
			far.mu.Lock()
			defer far.mu.Unlock()
			requests, far.asked = far.asked, 0
			return requests, c.Counts().Retries["slow"] - before
		}
		read(0, 30)
		far.mu.Lock()
		far.delay = 800 * time.Millisecond
		far.mu.Unlock()
		src.reset()
		had := f.Cached()
		n, slow := read(30, 100)
		_, sent := src.reset()
		t.Logf("%d requests, %d of them doubles, %d bytes", n, slow, sent)
		came := f.Cached() - had
		if n < 40 || slow*20 > int64(n) || float64(sent) > 1.02*float64(came) {
			t.Errorf("%d requests, %d of them doubles, %d bytes for %d", n, slow, sent, came)
		}
	})
}

// TestLimitedReadsFetchOnce reads on under a rate limit: the limiter's time
// is nobody's fault, so nothing is fetched twice.
func TestLimitedReadsFetchOnce(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 16<<20)
	synctest.Test(t, func(t *testing.T) {
		far := &distant{fakeSource: src, delay: 10 * time.Millisecond}
		c := openCache(t, t.TempDir(), Options{LimitRate: 256 << 10, Tardy: usual})
		took, _ := readOn(t, openFile(t, c, a.file, far), a.flat)
		_, fetched := src.reset()
		if fetched != int64(len(a.data)) || c.Counts().Retries["slow"] != 0 {
			t.Errorf("%d bytes for %d; %v", fetched, len(a.data), c.Counts().Retries)
		}
		if want := 64 * time.Second; took > want+2*time.Second || took < want-2*time.Second {
			t.Errorf("it took %v, not %v", took, want)
		}
	})
}
