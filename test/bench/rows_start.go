package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/traces"
)

// startRows touch the pages that the guest of the traces used after it was
// resumed, in that order and as fast as they come. They need no guest.
var startRows = []row{
	{"touches", touchesRow},
	{"touches-ways", touchesWaysRow},
	{"touches-other", touchesOtherRow},
	{"touches-whole", touchesWholeRow},
	{"replay-reader", replayReaderRow},
}

// touchedFor is how long the guest of the traces is followed, in milliseconds.
const touchedFor = 10_000

// pagesWithin returns the pages that a guest used within some milliseconds,
// distributed to threads.
func pagesWithin(t *traces.Touches, within int64, threads int) [][]extent {
	lists := make([][]extent, threads)
	for i, x := range t.Touches {
		if x[0] <= within {
			lists[i%threads] = append(lists[i%threads], extent{x[1] * t.Page, t.Page})
		}
	}
	return lists
}

// touchPagesOf is the work of touching pages of the memory.
func touchPagesOf(ctx context.Context, lists [][]extent, huge bool) work {
	return func(m *mount, end func() error) (float64, error) {
		seconds, err := touch(ctx, m.path(memoryTitle), lists, huge)
		if err == nil {
			err = end()
		}
		return seconds, err
	}
}

// touchesRow touches as a hypervisor with one processor does.
func touchesRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	t, err := b.touched(ctx)
	if err != nil {
		return nil, err
	}
	ways := t.ways()
	lists := pagesWithin(t.Touches, touchedFor, 1)
	if err := b.starts(ctx, touchPagesOf(ctx, lists, true), ways...); err != nil {
		return nil, err
	}
	work := fmt.Sprintf("from mount until %d pages that a guest's start uses were touched, ", len(lists[0]))
	var lines []*line
	plain := ways[0]
	for i, limit := range []float64{0, 0, 0.45, 0.25} {
		l := timed(work+ways[i].name, ways[i].fromMount, ways[0].name, plain.fromMount, goal(limit), limit)
		l.Note = number(ways[i].fetched.median()) + " MB"
		lines = append(lines, l)
	}
	with := ways[3]
	for _, w := range ways[2:] {
		bare, err := b.bare(ctx, w)
		if err != nil {
			return lines, err
		}
		lines = append(lines, timed(fmt.Sprintf("floor: the %d requests of %s, to nowhere", len(w.requests), w.name), bare, ways[0].name, plain.fromMount, no, 0))
	}
	return append(lines,
		memoryLine("the mount in the page cache then, "+with.name, with.cached, t.setMB),
		askedLine("until the mount is there, "+with.name, with, ways[1], "without")), nil
}

// touchesWaysRow touches with more threads, and without readahead of 2 MiB.
func touchesWaysRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping().fewer()
	t, err := b.touched(ctx)
	if err != nil {
		return nil, err
	}
	var lines []*line
	for _, c := range []struct {
		what    string
		threads int
		huge    bool
	}{{"4 threads", 4, true}, {"one thread, no MADV_HUGEPAGE", 1, false}, {"4 threads, no MADV_HUGEPAGE", 4, false}} {
		ways := t.ways()
		lists := pagesWithin(t.Touches, touchedFor, c.threads)
		if err := b.starts(ctx, touchPagesOf(ctx, lists, c.huge), ways...); err != nil {
			return lines, err
		}
		for _, w := range ways[1:] {
			l := timed("the same, "+c.what+", "+w.name, w.fromMount, ways[0].name, ways[0].fromMount, no, 0)
			l.Note = fmt.Sprintf("%s MB, %s %s MB", number(w.fetched.median()), ways[0].name, number(ways[0].fetched.median()))
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// touchesOtherRow looks what it costs to look for a working set that is not
// there, and to have one that is wrong.
func touchesOtherRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	t, err := b.touched(ctx)
	if err != nil {
		return nil, err
	}
	small := &start{tag: t.v1, link: startLink, flags: append([]string{"--prefetch", "small"}, withoutSet...)}
	none := &start{tag: t.v1, link: startLink}
	other := &start{tag: t.v1, link: startLink, flags: []string{"--working-set", t.other}}
	if err := b.starts(ctx, touchPagesOf(ctx, pagesWithin(t.Touches, touchedFor, 1), true), small, none, other); err != nil {
		return nil, err
	}
	const work, reference = "the same touches, v1, ", "small files prefetched alone"
	l := timed(work+"another guest's working set", other.fromMount, reference, small.fromMount, atMost, 1.1)
	l.Note = fmt.Sprintf("%s MB, alone %s MB", number(other.fetched.median()), number(small.fetched.median()))
	return []*line{
		timed(work+"no working set in the registry", none.fromMount, reference, small.fromMount, atMost, 1.05),
		l,
		askedLine("until the mount is there, v1, a working set is looked for", none, small, "not looked for"),
	}, nil
}

// touchesWholeRow reads all of a file whose pages are local, after a start on a
// slow link with half of a working set: as the start has left its page cache, and
// with an empty one.
func touchesWholeRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	t, err := b.touched(ctx)
	if err != nil {
		return nil, err
	}
	lists := pagesWithin(t.Touches, touchedFor, 1)
	read := func(drop bool) func() (float64, error) {
		s := &start{tag: t.packed, link: slowLink, flags: []string{"--working-set", t.half}}
		return func() (float64, error) {
			return s.run(ctx, b, func(m *mount, end func() error) (float64, error) {
				return wholeAfter(ctx, m.path(memoryTitle), lists, drop, end)
			})
		}
	}
	ours, theirs, err := b.pair(ctx, read(false), read(true))
	if err != nil {
		return nil, err
	}
	return []*line{timed("all of the memory, local, read in order after a start at 20 MB/s with half of its working set, packed", ours, "with an empty page cache", theirs, atMost, 1.2)}, nil
}

// wholeAfter touches pages, brings the rest past the page cache, and returns the
// seconds that it takes to read all of the file then.
func wholeAfter(ctx context.Context, path string, lists [][]extent, drop bool, end func() error) (float64, error) {
	hypervisor, err := os.Open(path) // has it open all the time
	if err != nil {
		return 0, err
	}
	defer hypervisor.Close()
	if _, err := touch(ctx, path, lists, true); err != nil {
		return 0, err
	}
	if err := directly(path); err != nil {
		return 0, err
	}
	if drop {
		if err := forget(path); err != nil {
			return 0, err
		}
	}
	if err := end(); err != nil {
		return 0, err
	}
	st, err := hypervisor.Stat()
	if err != nil {
		return 0, err
	}
	return sequential(path, 0, st.Size())
}

// directly reads all of a file past the page cache.
func directly(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := aligned(1 << 20)
	defer unix.Munmap(buf)
	for {
		_, err := f.Read(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// replayReaderRow reads pages that are in no working set while one is fetched.
func replayReaderRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	if err := b.prepare(ctx, "half"); err != nil {
		return nil, err
	}
	const share, reads = 0.2, 16
	set := filepath.Join(b.dir, "clusters.set")
	if err := writeSet(set, half.name, half.m.Size(), clusterTouches(half, share)); err != nil {
		return nil, err
	}
	seed := uint64(0)
	mean := func(flags ...string) func() (float64, error) {
		s := &start{tag: "half", link: startLink, flags: flags}
		return func() (float64, error) {
			return s.run(ctx, b, func(m *mount, end func() error) (float64, error) {
				seed++
				_, offsets := randomData(half, reads, seed)
				seconds, _, err := randomly(m.path(half.name), offsets, unix.O_DIRECT)
				if err == nil {
					err = end()
				}
				return seconds / reads * 1e3, err
			})
		}
	}
	ours, theirs, err := b.pair(ctx, mean("--working-set", set), mean(append([]string{"--prefetch", "none"}, withoutSet...)...))
	if err != nil {
		return nil, err
	}
	l := timed("cold random read of 4 KiB while a working set of 64 MiB is replayed", ours, "idle mount", theirs, atMost, 2)
	l.Unit = "ms"
	return []*line{l}, nil
}

// clusterTouches are touches of a share of a memory's data within a second.
func clusterTouches(d *dataset, share float64) (touches [][2]int64) {
	for _, list := range workingSet(d, share, 1, 1) {
		for i, e := range list {
			for off := e.Off; off < e.Off+e.Len; off += pageSize {
				touches = append(touches, [2]int64{int64(i) * int64(time.Second/time.Millisecond) / int64(len(list)), off / pageSize})
			}
		}
	}
	return touches
}
