package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// randomReads is how many reads of 4 KiB the random rows do.
const randomReads = 500

// randomThreads is how many readers share them in one line: a hypervisor
// keeps a few of a guest's reads under way.
const randomThreads = 4

func randomRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := errors.Join(b.prepare(ctx, "v1"), b.prepare(ctx, "v1-plain")); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaped)
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	seed := uint64(0)
	ours := func(tag string, threads int, fetched *sample) func() (float64, error) {
		return func() (float64, error) {
			m, err := b.mount(ctx, addr, tag)
			if err != nil {
				return 0, err
			}
			defer m.close()
			seed++
			_, offsets := randomData(memory, randomReads, seed)
			before := proxy.Counts()
			seconds, err := together(m.path(memory.name), offsets, threads)
			*fetched = append(*fetched, float64(proxy.Counts().Sub(before).Body)/1e6)
			return seconds, err
		}
	}
	var rcloned, fetched, plainFetched sample
	theirs, stop, err := b.randomRclone(ctx, &rcloned)
	if err != nil {
		return nil, err
	}
	defer stop()
	slower := b.fewer() // these take longest
	withSums, other, err := slower.pair(ctx, ours("v1", 1, &fetched), theirs)
	if err != nil {
		return nil, err
	}
	plain, err := ours("v1-plain", 1, &plainFetched)()
	if err != nil {
		return nil, err
	}
	var ignored sample
	few, err := ours("v1", randomThreads, &ignored)()
	if err != nil {
		return nil, err
	}
	work := fmt.Sprintf("%d random reads of 4 KiB, cold, shaped, ", randomReads)
	first := timed(work+"256 KiB pieces with digests", withSums, "rclone mount", other, atMost, 0.5)
	first.Note = fmt.Sprintf("rclone fetched %s MB", number(rcloned.median()))
	return []*line{
		first,
		counted("fetched for them", "MB", fetched, atMost, 160),
		timed(work+"no digests of pieces", sample{plain}, "rclone mount", other, no, 0),
		counted("fetched for them", "MB", plainFetched, atMost, 80),
		counted(fmt.Sprintf("%d random reads from %d threads on one descriptor", randomReads, randomThreads), "s", sample{few}, no, 0),
	}, nil
}

// randomRclone reads random pages through rclone, from a web server with
// the registry's storage: that is what its http remote can mount.
func (b *bench) randomRclone(ctx context.Context, fetched *sample) (read func() (float64, error), stop func(), err error) {
	made, err := b.writer.payload(ctx, 0, memory)
	if err != nil {
		return nil, nil, err
	}
	path, err := filepath.Rel(b.registry.dir, b.registry.blobPath(made.blobs[0].digest))
	if err != nil {
		return nil, nil, err
	}
	files, stopFiles, err := fileServer(b.registry.dir)
	if err != nil {
		return nil, nil, err
	}
	proxy, err := shaping.Start(files, shaped)
	if err != nil {
		stopFiles()
		return nil, nil, err
	}
	stop = func() {
		_ = proxy.Close() // only its listener's error
		stopFiles()
	}
	return func() (float64, error) {
		m, err := b.rclone(ctx, proxy.Addr())
		if err != nil {
			return 0, err
		}
		defer m.stop()
		offsets, _ := randomData(memory, randomReads, uint64(len(*fetched)))
		before := proxy.Counts()
		seconds, err := together(filepath.Join(m.dir, path), offsets, 1)
		*fetched = append(*fetched, float64(proxy.Counts().Sub(before).Body)/1e6)
		return seconds, err
	}, stop, nil
}

// prefetchRow looks whether what a reader waits for overtakes what nobody
// waits for: the mean of cold reads while everything is being fetched,
// beside that on an idle mount.
func prefetchRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	opts := shaped
	opts.Total = 250e6
	addr, proxy, err := b.link(&opts)
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	const reads = 60
	mean := func(prefetch string, fill time.Duration) (float64, error) {
		m, err := b.mount(ctx, addr, "v1", "--prefetch", prefetch)
		if err != nil {
			return 0, err
		}
		defer m.close()
		select {
		case <-time.After(fill):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		_, offsets := randomData(disk, reads, 9)
		seconds, _, err := randomly(m.path(disk.name), offsets, 0)
		return seconds / reads * 1e3, err
	}
	ours, theirs, err := b.pair(ctx,
		func() (float64, error) { return mean("all", 500*time.Millisecond) },
		func() (float64, error) { return mean("none", 0) })
	if err != nil {
		return nil, err
	}
	l := timed("cold random read of 4 KiB while all is prefetched, shaped, 250 MB/s in all", ours, "idle mount", theirs, atMost, 2)
	l.Unit = "ms"
	return []*line{l}, nil
}

func mmapRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	cold := func(read func(path string) (float64, error)) func() (float64, error) {
		return func() (float64, error) {
			m, err := b.mount(ctx, b.registry.addr, "v1")
			if err != nil {
				return 0, err
			}
			defer m.close()
			return read(m.path(memory.name))
		}
	}
	ours, theirs, err := b.holding().pair(ctx, cold(func(path string) (float64, error) {
		return touch(ctx, path, [][]extent{{{0, memory.m.Size()}}}, false)
	}), cold(func(path string) (float64, error) {
		return sequential(path, 0, memory.m.Size())
	}))
	if err != nil {
		return nil, err
	}
	return []*line{sped("every page of an mmap in order, cold, loopback as it is", ours, "read(2) of 1 MiB steps, same mount", theirs, 0.8)}, nil
}

func workingSetRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaped)
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	var urls []string
	for _, d := range artifacts["v1"].sets {
		u, err := b.blobURL(ctx, addr, d)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	var fetched sample
	const share, processors = 0.05, 4
	ours, theirs, err := b.fewer().pair(ctx, func() (float64, error) {
		m, err := b.mount(ctx, addr, "v1")
		if err != nil {
			return 0, err
		}
		defer m.close()
		before := proxy.Counts()
		seconds, err := touch(ctx, m.path(memory.name), workingSet(memory, share, processors, uint64(len(fetched))), false)
		fetched = append(fetched, float64(proxy.Counts().Sub(before).Body)/1e6)
		return seconds, err
	}, func() (float64, error) { return b.curl(ctx, urls...) })
	if err != nil {
		return nil, err
	}
	l := sped("5 % of the memory's data in clusters, by mmap from 4 threads, shaped", ours, "curl of all blobs, a stream each", theirs, 10)
	l.Note = number(fetched.median()) + " MB"
	return []*line{l}, nil
}

// startRow is the time from nothing to the first small file's bytes.
func startRow(ctx context.Context, b *bench) ([]*line, error) {
	addr, proxy, err := b.link(&shaping.Options{Delay: 20 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	start := func(tag string) func() (float64, error) {
		return func() (float64, error) {
			began := time.Now()
			m, err := b.mount(ctx, addr, tag)
			if err != nil {
				return 0, err
			}
			defer m.close()
			err = readAll(m.path("config.json"))
			return float64(time.Since(began).Milliseconds()) / 20, err
		}
	}
	if err := errors.Join(b.prepare(ctx, "1g"), b.prepare(ctx, "100g")); err != nil {
		return nil, err
	}
	before := proxy.Counts()
	large, small, err := b.pair(ctx, start("100g"), start("1g"))
	if err != nil {
		return nil, err
	}
	requests := proxy.Counts().Sub(before).Requests / int64(2*b.runs)
	trips := counted("mount and cat config.json at 20 ms a request, 1 GB snapshot", "round trips", small, atMost, 12)
	trips.Note = fmt.Sprintf("%d requests", requests)
	same := timed("the same, 100 GB snapshot", large, "1 GB snapshot", small, atMost, 1.15)
	same.Unit = "round trips"
	return []*line{trips, same}, nil
}

func noRangeRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaping.Options{IgnoreRanges: true})
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	url, err := b.blobURL(ctx, addr, memory)
	if err != nil {
		return nil, err
	}
	var fetched sample
	ours, theirs, err := b.holding().pair(ctx, func() (float64, error) {
		m, err := b.mount(ctx, addr, "v1")
		if err != nil {
			return 0, err
		}
		defer m.close()
		before := proxy.Counts()
		seconds, err := sequential(m.path(memory.name), 0, memory.m.Size())
		fetched = append(fetched, float64(proxy.Counts().Sub(before).Body)/float64(memory.m.DataSize()))
		return seconds, err
	}, func() (float64, error) { return b.curl(ctx, url) })
	if err != nil {
		return nil, err
	}
	return []*line{
		timed("registry without Range: sequential read from the start", ours, "curl of the raw blob", theirs, atMost, 1.15),
		counted("how often its blob was fetched", "times", fetched, atMost, 1.02),
	}, nil
}
