package main

import (
	"context"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// localReads is how many reads of 4 KiB the local rows do.
const localReads = 20000

// localRow reads a file that the kernel serves by itself, beside the
// cache's file: the same pages of memory.
func localRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	m, err := b.mount(ctx, b.registry.addr, "v1")
	if err != nil {
		return nil, err
	}
	defer m.close()
	mounted := m.path(memory.name)
	if _, err := sequential(mounted, 0, memory.m.Size()); err != nil {
		return nil, err
	}
	data, err := m.data(memory)
	if err != nil {
		return nil, err
	}
	waited := m.awaitPassthrough(memory.name)
	read := func(path string) (float64, error) { return sequential(path, 0, memory.m.Size()) }
	p50 := func(path string) (float64, error) {
		_, offsets := randomData(memory, localReads, 5)
		_, us, err := randomly(path, offsets, 0)
		return us, err
	}
	seqOurs, seqTheirs, err := b.warmPair(ctx, mounted, data, read)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := b.warmPair(ctx, mounted, data, p50)
	if err != nil {
		return nil, err
	}
	lines := []*line{
		sped("all local, opened new, in the page cache: sequential", seqOurs, "the cache's own file", seqTheirs, 0.95),
		timed("all local, opened new, in the page cache: random 4 KiB, p50", ours, "the cache's own file", theirs, atMost, 1.2),
	}
	lines[1].Unit = "µs"
	if waited != nil {
		for _, l := range lines {
			l.Note = waited.Error()
		}
	}
	return lines, nil
}

// warmPair measures two paths in turn, twice as often as what is slow, and
// once before that to fill the page cache.
func (b *bench) warmPair(ctx context.Context, ours, theirs string, f func(path string) (float64, error)) (o, t sample, err error) {
	for i := range 2*b.runs + 1 {
		x, err := f(ours)
		if err != nil {
			return o, t, err
		}
		y, err := f(theirs)
		if err != nil {
			return o, t, err
		}
		if i > 0 {
			o, t = append(o, x), append(t, y)
		}
		if err := ctx.Err(); err != nil {
			return o, t, err
		}
	}
	return o, t, nil
}

// partlyRow reads the first half of a file whose second half is not here,
// through the process, beside go-fuse's loopback over the same file.
func partlyRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	m, err := b.mount(ctx, b.registry.addr, "v1")
	if err != nil {
		return nil, err
	}
	defer m.close()
	data, err := m.data(memory)
	if err != nil {
		return nil, err
	}
	loop, err := b.loopback(ctx, filepath.Dir(data))
	if err != nil {
		return nil, err
	}
	defer loop.stop()
	mounted, looped := m.path(memory.name), filepath.Join(loop.dir, filepath.Base(data))
	half := memory.m.Size() / 2
	if _, err := sequential(mounted, 0, half); err != nil {
		return nil, err
	}
	seqOurs, seqTheirs, err := b.warmPair(ctx, mounted, looped, func(path string) (float64, error) {
		if err := forget(path); err != nil {
			return 0, err
		}
		return sequential(path, 0, half)
	})
	if err != nil {
		return nil, err
	}
	ours, theirs, err := b.warmPair(ctx, mounted, looped, func(path string) (float64, error) {
		_, offsets := randomData(memory, localReads, 6)
		for i, off := range offsets {
			offsets[i] = off % half // may be a hole, for both
		}
		seconds, _, err := randomly(path, offsets, unix.O_DIRECT)
		return seconds / localReads * 1e6, err
	})
	if err != nil {
		return nil, err
	}
	lines := []*line{
		sped("partly local, mount's page cache cold: sequential", seqOurs, "go-fuse loopback", seqTheirs, 0.9),
		timed("partly local: random 4 KiB with O_DIRECT", ours, "go-fuse loopback", theirs, atMost, 1.15),
	}
	lines[1].Unit = "µs"
	if have, err := m.cached(memory.name); err == nil && have >= memory.m.DataSize() {
		lines[0].Note = "by then all was local"
	}
	return lines, nil
}

// memoryRow looks at the serving process: after it was left alone, and at
// its largest while four readers of each kind keep it busy.
func memoryRow(ctx context.Context, b *bench) ([]*line, error) {
	var idle, busy sample
	for range b.runs {
		if err := b.settle(); err != nil {
			return nil, err
		}
		i, f, err := b.memoryOnce(ctx)
		if err != nil {
			return nil, err
		}
		idle, busy = append(idle, i), append(busy, f)
	}
	return []*line{
		counted("memory of the serving process, idle", "MiB", idle, atMost, 64),
		counted("the same at its most, flat out, map of 30,000 segments", "MiB", busy, atMost, 200),
	}, nil
}

func (b *bench) memoryOnce(ctx context.Context) (idle, busy float64, err error) {
	if err := b.prepare(ctx, "segments"); err != nil {
		return 0, 0, err
	}
	m, err := b.mount(ctx, b.registry.addr, "segments")
	if err != nil {
		return 0, 0, err
	}
	defer m.close()
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	if idle, _, err = m.memory(); err != nil {
		return 0, 0, err
	}
	const readers = 4
	path, size := m.path(segments.name), segments.m.Size()
	var g errgroup.Group
	for i := range int64(readers) {
		g.Go(func() error {
			_, err := sequential(path, i*size/readers, (i+1)*size/readers)
			return err
		})
		g.Go(func() error {
			_, offsets := randomData(segments, 5000, uint64(i))
			_, _, err := randomly(path, offsets, 0)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	_, busy, err = m.memory()
	return idle, busy, err
}
