package cache

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
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
// and stands still now. What was read is written later, or, if memory had no room for
// it until then and the file is to be there as a whole, fetched again.
func TestReadersDoNotWaitForDisk(t *testing.T) {
	t.Parallel()
	const size, step = 6 << 20, 1 << 20
	for _, k := range kinds {
		if k.zstd && k.chunk == 0 {
			continue // comes as a whole blob
		}
		for _, room := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, room %t", k.name, room), func(t *testing.T) {
				t.Parallel()
				src := &fakeSource{}
				a := makeFile(t, newRand(t), src, k, size)
				d := &jammedDisk{free: make(chan struct{})}
				c := openCache(t, t.TempDir(), Options{before: d.before})
				f := openFile(t, c, a.file, src)
				t.Cleanup(d.release)
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
				src.reset()
				if n := c.Counts().NotKept; n != 0 || f.Cached() > 0 {
					t.Errorf("of %d bytes %d are given up, and %d were kept", len(a.data), n, f.Cached())
				}
				lost := int64(0)
				if !room {
					eventually(t, "no job runs", func() bool { return c.queue.count() == 0 })
					f.Prefetch() // which needs nothing of what is in memory
					for i := range f.entry.grid.Pieces() {
						f.entry.held.Drop(i)
					}
					lost = int64(len(a.data))
				}
				d.release()
				c.pace.slow(false)
				eventually(t, "all is there", f.Complete)
				if again, _ := src.reset(); again > 0 == room || c.Counts().NotKept != lost {
					t.Errorf("%d requests more, and %d bytes were not kept, not %d", again, c.Counts().NotKept, lost)
				}
				read()
			})
		}
	}
}

// TestPrefetchEndsOnSlowDisk prefetches a file of which some was read from a cache
// whose disk was found slow.
func TestPrefetchEndsOnSlowDisk(t *testing.T) {
	t.Parallel()
	for _, more := range []bool{true, false} {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kinds[1], 6<<20)
		c := openCache(t, t.TempDir(), Options{})
		f := openFile(t, c, a.file, src)
		c.pace.slow(true)
		checkRead(t, f, a.flat, 0, 1<<20)
		f.Prefetch()
		if more {
			checkRead(t, f, a.flat, 0, len(a.flat))
		} else {
			missing := func() (n int) {
				for i := range f.entry.grid.Pieces() {
					if !f.entry.state.Has(i) && f.entry.held.Peek(i) == nil {
						n++
					}
				}
				return n
			}
			eventually(t, "what was not read is there", func() bool { return missing() == 0 })
		}
		c.pace.slow(false)
		eventually(t, "all is there", f.Complete)
	}
}

// TestLatePiecesOfOthers has a piece be taken back while others wait for a slow disk,
// here or by another process. What was there is not believed any more: it is fetched
// again.
func TestLatePiecesOfOthers(t *testing.T) {
	t.Parallel()
	for _, here := range []bool{true, false} {
		src, dir := &fakeSource{}, t.TempDir()
		a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
		c := openCache(t, dir, Options{watch: time.Hour})
		f := openFile(t, c, a.file, src)
		c.pace.slow(true)
		checkRead(t, f, a.flat, 0, len(a.flat))
		e := f.entry
		eventually(t, "no job runs", func() bool { return c.queue.count() == 0 })
		if f.Prefetch(); here {
			e.disk.TakeBack(2, 3)
		} else {
			other := openFile(t, openCache(t, dir, Options{}), a.file, src)
			checkRead(t, other, a.flat, int(e.grid.Stretch(2, 3).Off), 1)
			other.entry.disk.Discard(2, 3, disk.Found{By: disk.ByDigest})
		}
		src.reset()
		c.pace.slow(false)
		eventually(t, "all is there", f.Complete)
		if n, _ := src.reset(); n == 0 {
			t.Error("nothing was fetched again")
		}
	}
}

// TestBacklogIsBounded has more pieces wait for a slow disk than memory has room for.
func TestBacklogIsBounded(t *testing.T) {
	t.Parallel()
	const most, more = overlay.Size / (128 << 10), 3 // pieces
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	c := openCache(t, t.TempDir(), Options{})
	f := openFile(t, c, a.file, src)
	c.pace.slow(true)
	for range most + more {
		f.entry.backlog.add(&disk.Incoming{Payload: a.data[:128<<10], By: disk.ByFetch})
	}
	if n := c.Counts().NotKept; n != more*128<<10 {
		t.Errorf("%d bytes are given up", n)
	}
}

// TestMeasuredThenSlow hands pieces over before it is known whether there is room for
// them. When that is known, the disk has become slow.
func TestMeasuredThenSlow(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[1], 2<<20)
	stuck := newStuckDisk("measure")
	c := openCache(t, t.TempDir(), Options{before: stuck.before, grace: time.Millisecond})
	t.Cleanup(stuck.release)
	f := openFile(t, c, a.file, src)
	checkRead(t, f, a.flat, 0, len(a.flat))
	c.pace.slow(true)
	stuck.release()
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
