package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/shaping"
	"github.com/cocoonstack/epochfs/test/traces"
)

// throughLink has f read a file through a cold mount behind a link, and
// notes what was fetched, in bytes.
func (b *bench) throughLink(ctx context.Context, opts shaping.Options, tag string, fetched *sample, read func(path string) (float64, error)) (float64, error) {
	addr, proxy, err := b.link(&opts)
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	m, err := b.mount(ctx, addr, tag)
	if err != nil {
		return 0, err
	}
	defer m.close()
	before := proxy.Counts()
	seconds, err := read(m.path(memoryTitle))
	if fetched != nil {
		*fetched = append(*fetched, float64(proxy.Counts().Sub(before).Body)/1e6)
	}
	return seconds, err
}

// formats has the first memory in two formats.
func (b *bench) formats(ctx context.Context, ours, theirs string) (f *family, tags [2]string, err error) {
	if f, err = b.family(); err != nil {
		return nil, tags, err
	}
	for i, format := range []string{ours, theirs} {
		if tags[i], err = b.packedTag(ctx, format, false); err != nil {
			return nil, tags, err
		}
	}
	return f, tags, nil
}

func packedSequentialRow(ctx context.Context, b *bench) ([]*line, error) {
	f, tags, err := b.formats(ctx, "packed", "v2")
	if err != nil {
		return nil, err
	}
	var fetched [2]sample
	read := func(i int) func() (float64, error) {
		return func() (float64, error) {
			return b.throughLink(ctx, shaped, tags[i], &fetched[i], func(path string) (float64, error) {
				return sequential(path, 0, f.m.Size())
			})
		}
	}
	ours, theirs, err := b.holding().pair(ctx, read(0), read(1))
	if err != nil {
		return nil, err
	}
	l := timed("cold sequential read of a guest's memory, shaped", ours, inV2, theirs, atMost, 1)
	l.Note = fmt.Sprintf("%s MB, v2 %s MB", number(fetched[0].median()), number(fetched[1].median()))
	return []*line{l}, nil
}

func packedRandomRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.fewer()
	f, tags, err := b.formats(ctx, "packed", "v1")
	if err != nil {
		return nil, err
	}
	var fetched [2]sample
	seeds := [2]uint64{}
	read := func(i int) func() (float64, error) {
		return func() (float64, error) {
			seeds[i]++
			return b.throughLink(ctx, shaped, tags[i], &fetched[i], func(path string) (float64, error) {
				seconds, _, err := randomly(path, f.randomIn(randomReads, seeds[i]), 0)
				return seconds, err
			})
		}
	}
	ours, theirs, err := b.pair(ctx, read(0), read(1))
	if err != nil {
		return nil, err
	}
	l := timed(fmt.Sprintf("%d random reads of 4 KiB, cold, shaped", randomReads), ours, "v1", theirs, atMost, 1)
	l.Note = fmt.Sprintf("v1 fetched %s MB", number(fetched[1].median()))
	return []*line{l, counted("fetched for them", "MB", fetched[0], atMost, 10)}, nil
}

// packedTouchedRow reads the pages that a guest used after it was resumed,
// in that order: each by itself, as they were seen, and with what the kernel
// reads ahead of them.
func packedTouchedRow(ctx context.Context, b *bench) ([]*line, error) {
	f, tags, err := b.formats(ctx, "packed", "v2")
	if err != nil {
		return nil, err
	}
	offsets, err := touchedPages(f)
	if err != nil {
		return nil, err
	}
	touched := func(tag string, advice int) (fetched sample, err error) {
		_, err = b.throughLink(ctx, shaping.Options{}, tag, &fetched, func(path string) (float64, error) {
			return readTouched(path, offsets, advice)
		})
		return fetched, err
	}
	alone, err := touched(tags[0], unix.FADV_RANDOM)
	if err != nil {
		return nil, err
	}
	ahead, err := touched(tags[0], unix.FADV_NORMAL)
	if err != nil {
		return nil, err
	}
	v2, err := touched(tags[1], unix.FADV_RANDOM)
	if err != nil {
		return nil, err
	}
	work := fmt.Sprintf("fetched for the %d pages that a guest's start uses", len(offsets))
	l := counted(work, "MB", alone, atMost, 45)
	l.Note = "v2 " + number(v2.median()) + " MB"
	return []*line{l, counted(work+", and what the kernel reads ahead of them", "MB", ahead, no, 0)}, nil
}

// readTouched reads 4 KiB at each offset, after advising the kernel.
func readTouched(path string, offsets []int64, advice int) (float64, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, advice); err != nil {
		return 0, err
	}
	buf := make([]byte, pageSize)
	for _, off := range offsets {
		if _, err := f.ReadAt(buf, off); err != nil {
			return 0, err
		}
	}
	return time.Since(began).Seconds(), nil
}

// touchedPages are the offsets of the traces' pages that hold data in the
// memory.
func touchedPages(f *family) ([]int64, error) {
	t, err := traces.ReadTouches()
	if err != nil {
		return nil, err
	}
	var offsets []int64
	for _, x := range t.Touches {
		off := x[1] * t.Page
		if at, ok := f.m.SeekData(off); ok && at == off {
			offsets = append(offsets, off)
		}
	}
	return offsets, nil
}

func packedNoRangeRow(ctx context.Context, b *bench) ([]*line, error) {
	f, tags, err := b.formats(ctx, "packed", "v2")
	if err != nil {
		return nil, err
	}
	live, err := b.livePacks(ctx, repo+":"+tags[0])
	if err != nil {
		return nil, err
	}
	var fetched sample
	_, err = b.throughLink(ctx, shaping.Options{IgnoreRanges: true}, tags[0], &fetched, func(path string) (float64, error) {
		seconds, _, err := randomly(path, f.randomIn(randomReads, 1), 0)
		return seconds, err
	})
	if err != nil {
		return nil, err
	}
	times := sample{fetched.median() / (float64(live.Stored) / 1e6)}
	return []*line{counted(fmt.Sprintf("registry without Range, %d random reads: how often the packs were fetched", randomReads), "times", times, atMost, 1.02)}, nil
}

func packedTarRow(ctx context.Context, b *bench) ([]*line, error) {
	_, tags, err := b.formats(ctx, "packed", "v2")
	if err != nil {
		return nil, err
	}
	write := func(tag string) func() (float64, error) {
		return func() (float64, error) {
			m, err := b.cold(ctx, b.registry.addr, tag, "-o", "-", "--no-cache")
			return m.seconds, err
		}
	}
	ours, theirs, err := b.pair(ctx, write(tags[0]), write(tags[1]))
	if err != nil {
		return nil, err
	}
	return []*line{timed("tar of a guest's memory, loopback as it is, --no-cache", ours, inV2, theirs, atMost, 1.1)}, nil
}

// packedStartRow is the time from nothing to the first small file's bytes.
func packedStartRow(ctx context.Context, b *bench) ([]*line, error) {
	tags := [2]string{"packed-100g", "packed-1g"}
	if err := errors.Join(b.prepareLarge(ctx, tags[0], 100<<30), b.prepareLarge(ctx, tags[1], 1<<30)); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaping.Options{Delay: 20 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	var requests [2]sample
	start := func(i int) func() (float64, error) {
		return func() (float64, error) {
			before := proxy.Counts()
			began := time.Now()
			m, err := b.mount(ctx, addr, tags[i], withoutSet...) // one is looked for beside the start
			if err != nil {
				return 0, err
			}
			defer m.close()
			err = readAll(m.path("config.json"))
			took := float64(time.Since(began).Milliseconds()) / 20
			requests[i] = append(requests[i], float64(proxy.Counts().Sub(before).Requests))
			return took, err
		}
	}
	large, small, err := b.pair(ctx, start(0), start(1))
	if err != nil {
		return nil, err
	}
	l := timed("mount and cat config.json at 20 ms a request, 100 GiB", large, "1 GiB", small, atMost, 1.15)
	l.Unit = "round trips"
	return []*line{l, counted("requests for that, 100 GiB", "requests", requests[0], atMost, 5)}, nil
}

// packedMemoryRow looks at the process that serves 100 GiB in granules of
// 64 KiB, at its largest, while four readers of each kind keep it busy.
func packedMemoryRow(ctx context.Context, b *bench) ([]*line, error) {
	const tag, size = "packed-100g", 100 << 30
	if err := b.prepareLarge(ctx, tag, size); err != nil {
		return nil, err
	}
	var idle, busy sample
	for range b.fewer().runs {
		if err := b.settle(); err != nil {
			return nil, err
		}
		i, f, err := b.flatOut(ctx, tag, size)
		if err != nil {
			return nil, err
		}
		idle, busy = append(idle, i), append(busy, f)
	}
	return []*line{
		counted("memory of a process that serves 100 GiB, idle", "MiB", idle, no, 0),
		counted("the same at its most, flat out", "MiB", busy, atMost, 200),
	}, nil
}

func (b *bench) flatOut(ctx context.Context, tag string, size int64) (idle, busy float64, err error) {
	m, err := b.mount(ctx, b.registry.addr, tag)
	if err != nil {
		return 0, 0, err
	}
	defer m.close()
	path := m.path(memoryTitle)
	if _, err := os.Stat(path); err != nil {
		return 0, 0, err
	}
	if idle, _, err = m.memory(); err != nil {
		return 0, 0, err
	}
	const readers, each = 4, 192 << 20
	var g errgroup.Group
	for i := range int64(readers) {
		g.Go(func() error {
			from := i * size / readers
			_, err := sequential(path, from, from+each)
			return err
		})
		g.Go(func() error {
			offsets := make([]int64, 500)
			for k := range offsets {
				offsets[k] = int64(mix(uint64(i)<<32|uint64(k))%uint64(size/pageSize)) * pageSize
			}
			_, _, err := randomly(path, offsets, unix.O_DIRECT)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	_, busy, err = m.memory()
	return idle, busy, err
}
