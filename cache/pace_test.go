package cache

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// jammedDisk takes no piece until it is freed.
type jammedDisk struct {
	free chan struct{}
	once sync.Once
}

func (d *jammedDisk) before(step string) {
	if step == "write data" {
		<-d.free
	}
}

func (d *jammedDisk) release() { d.once.Do(func() { close(d.free) }) }

// slow has the disk count as slow for an hour, and nothing be written of what
// readers can have from memory; or ends that.
func (p *pace) slow(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until, p.probing = time.Time{}, is
	if is {
		p.until = time.Now().Add(time.Hour)
	}
}

// TestReadersDoNotWaitForDisk reads a file from a cache whose disk was found slow,
// and stands still now. Of a file that is to be there as a whole, what was not kept
// comes later.
func TestReadersDoNotWaitForDisk(t *testing.T) {
	t.Parallel()
	const size, step = 6 << 20, 1 << 20
	for _, k := range kinds {
		if k.zstd && k.chunk == 0 {
			continue // comes as a whole blob
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			src := &fakeSource{}
			a := makeFile(t, newRand(t), src, k, size)
			d := &jammedDisk{free: make(chan struct{})}
			c := openCache(t, t.TempDir(), Options{before: d.before})
			f := openFile(t, c, a.file, src)
			t.Cleanup(d.release)
			f.entry.refill.wanted.Store(true)
			c.pace.slow(true)
			read := func() {
				t.Helper()
				got := make([]byte, len(a.flat))
				for off := 0; off < len(got); off += step {
					p := got[off:min(off+step, len(got))]
					if _, err := f.ReadAt(context.Background(), p, int64(off)); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(got, a.flat) {
					t.Fatal("wrong bytes")
				}
			}
			read()
			if n := c.Counts().NotKept; n != int64(len(a.data)) || f.Cached() > 0 {
				t.Errorf("of %d bytes %d were not kept, and %d were", len(a.data), n, f.Cached())
			}
			d.release()
			c.pace.slow(false)
			eventually(t, "all is there", f.Complete)
			read()
		})
	}
}

// TestPrefetchEndsOnSlowDisk prefetches a file that is being read, from a cache
// whose disk was found slow.
func TestPrefetchEndsOnSlowDisk(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 6<<20)
	c := openCache(t, t.TempDir(), Options{})
	f := openFile(t, c, a.file, src)
	c.pace.slow(true)
	checkRead(t, f, a.flat, 0, 1<<20)
	f.Prefetch()
	checkRead(t, f, a.flat, 0, len(a.flat))
	c.pace.slow(false)
	eventually(t, "all is there", f.Complete)
}

// TestBehind has jobs write, each after a while in which it fetches.
func TestBehind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		fetch, write time.Duration
		jobs         int // of which four write
		behind       bool
	}{
		{"a slow disk", 5 * time.Millisecond, 20 * time.Millisecond, 4, true},
		{"a slow link", 50 * time.Millisecond, 20 * time.Millisecond, 4, false},
		{"both are fast", time.Millisecond, 3 * time.Millisecond, 4, false},
		{"most jobs fetch", 5 * time.Millisecond, 20 * time.Millisecond, 16, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &pace{jobs: func() int { return test.jobs }}
				var was atomic.Bool
				var jobs sync.WaitGroup
				for range 4 {
					jobs.Go(func() {
						for range 50 {
							time.Sleep(test.fetch)
							done, ok := p.admit()
							if !ok {
								continue
							}
							_ = p.time(func() error { time.Sleep(test.write); return nil })
							done()
							if p.behind() {
								was.Store(true)
							}
						}
					})
				}
				jobs.Wait()
				if was.Load() != test.behind {
					t.Errorf("behind: %t", was.Load())
				}
				time.Sleep(2 * behindFor)
				if p.behind() {
					t.Error("still behind long after the last write")
				}
				if _, ok := p.admit(); !ok {
					t.Error("nothing is written any more")
				}
			})
		})
	}
}
