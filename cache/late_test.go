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

// TestReadersDoNotWaitForDisk reads a file from a cache whose disk was found slow,
// and stands still now. What is held in memory is written in the end.
func TestReadersDoNotWaitForDisk(t *testing.T) {
	t.Parallel()
	const size, step = 6 << 20, 1 << 20
	for _, held := range []int64{0, 2 << 20} {
		for _, k := range kinds {
			t.Run(fmt.Sprintf("%s, %d bytes held", k.name, held), func(t *testing.T) {
				t.Parallel()
				src := &fakeSource{}
				a := makeFile(t, newRand(t), src, k, size)
				d := &jammedDisk{free: make(chan struct{})}
				c := openCache(t, t.TempDir(), Options{held: held, before: d.before})
				f := openFile(t, c, a.file, src)
				t.Cleanup(d.release)
				onePiece := f.entry.grid.Pieces() == 1 // which is held whatever its size
				writes := func(n int) {                // a writer more, or less, however long the test takes
					c.late.mu.Lock()
					c.late.writers += n
					c.late.mu.Unlock()
				}
				writes(1)
				read := func() {
					t.Helper()
					got := make([]byte, len(a.flat))
					for off := 0; off < len(got); off += step {
						p := got[off:min(off+step, len(got))]
						if _, err := f.ReadAt(context.Background(), p, int64(off)); err != nil {
							t.Fatal(err)
						}
						if n := c.memory.Held(); n > c.memory.Size() && !onePiece {
							t.Fatalf("%d bytes are held", n)
						}
					}
					if !bytes.Equal(got, a.flat) {
						t.Fatal("wrong bytes")
					}
				}
				read()
				d.release()
				writes(-1)
				eventually(t, "what was to be written is", func() bool { return !c.late.behind() })
				notKept := c.Counts().NotKept
				switch {
				case held > 0 && notKept == 0 && !onePiece:
					t.Error("more was kept than there was room for")
				case held == 0 && notKept > 0:
					t.Errorf("%d bytes were not kept", notKept)
				}
				read()
				eventually(t, "all is kept", f.Complete)
			})
		}
	}
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
				l := &late{jobs: func() int { return test.jobs }}
				var was atomic.Bool
				var jobs sync.WaitGroup
				for range 4 {
					jobs.Go(func() {
						for range 50 {
							time.Sleep(test.fetch)
							_ = l.time(func() error { time.Sleep(test.write); return nil })
							if l.behind() {
								was.Store(true)
							}
						}
					})
				}
				jobs.Wait()
				if was.Load() != test.behind {
					t.Errorf("behind: %t", was.Load())
				}
				time.Sleep(time.Second)
				if l.behind() {
					t.Error("still behind after a second without writes")
				}
			})
		})
	}
}
