package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// floorRow measures what no reading through a mount can do without on this
// machine: bringing the bytes, on several connections and to nowhere, and
// handing a file's length to a reader, from memory.
func floorRow(ctx context.Context, b *bench) ([]*line, error) {
	var lines []*line
	for _, l := range []struct {
		work string
		link *shaping.Options
	}{
		{"8 ranges of the blob at a time, by curl to nowhere, shaped", &shaped},
		{"the same, loopback as it is", nil},
	} {
		s, err := b.floorOfFetching(ctx, l.link)
		if err != nil {
			return lines, err
		}
		lines = append(lines, counted(l.work, "s", s, no, 0))
	}
	s, err := b.floorOfReading(ctx)
	if err != nil {
		return lines, err
	}
	return append(lines, counted("2 GiB without data through a mount, sequential", "s", s, no, 0)), nil
}

func (b *bench) floorOfFetching(ctx context.Context, opts *shaping.Options) (sample, error) {
	binary, err := exec.LookPath("curl")
	if err != nil {
		return nil, fmt.Errorf("curl: %w", errNoReference)
	}
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(opts)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		defer proxy.Close()
	}
	url, err := b.blobURL(ctx, addr, memory)
	if err != nil {
		return nil, err
	}
	const connections = 8
	share := memory.m.DataSize() / connections
	var s sample
	for range b.runs {
		if err := b.settle(); err != nil {
			return nil, err
		}
		began := time.Now()
		var g errgroup.Group
		for i := range int64(connections) {
			g.Go(func() error {
				part := fmt.Sprintf("%d-%d", i*share, (i+1)*share-1)
				return exec.CommandContext(ctx, binary, "-sSf", "-r", part, "-o", "/dev/null", url).Run()
			})
		}
		if err := g.Wait(); err != nil {
			return nil, fmt.Errorf("curl: %w", err)
		}
		s = append(s, time.Since(began).Seconds())
	}
	return s, nil
}

// floorOfReading reads the beginning of a file of 100 GiB in which there
// is next to no data, for the second time.
func (b *bench) floorOfReading(ctx context.Context) (sample, error) {
	if err := b.prepare(ctx, "100g"); err != nil {
		return nil, err
	}
	m, err := b.mount(ctx, b.registry.addr, "100g")
	if err != nil {
		return nil, err
	}
	defer m.close()
	path := m.path(manyGB.name)
	read := func() (float64, error) { return sequential(path, 0, memory.m.Size()) }
	if _, err := read(); err != nil {
		return nil, err
	}
	var s sample
	for range b.runs {
		if err := b.holding().settle(); err != nil {
			return nil, err
		}
		seconds, err := read()
		if err != nil {
			return nil, err
		}
		s = append(s, seconds)
	}
	return s, nil
}
