package main

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

var takeoverRows = []row{{"takeover", takeoverRow}, {"takeover-cost", takeoverCostRow}}

const (
	kills     = 100
	restarts  = 30
	costRuns  = 60
	spareTime = 250 * time.Millisecond // for the next process to be prepared
)

// takeoverRow kills and replaces the process of a mount, of which all is
// local, under a reader.
func takeoverRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "slow"); err != nil {
		return nil, err
	}
	m, err := b.mount(ctx, b.registry.addr, "slow", "--prefetch", "all")
	if err != nil {
		return nil, err
	}
	defer m.close()
	path := m.path(slow.name)
	if _, err := sequential(path, 0, slow.m.Size()); err != nil {
		return nil, err
	}
	_ = m.awaitPassthrough(slow.name) // opens are measured in any mode
	first, err := m.served(0)
	if err != nil {
		return nil, err
	}
	fresh, err := anonymous(first.Keeper)
	if err != nil {
		return nil, err
	}
	o := startOpener(path, slow.m.Size())
	defer o.stop()
	kill := func(pid int) error { return unix.Kill(pid, unix.SIGKILL) }
	apart, err := m.changes(ctx, o, kills, spareTime, kill)
	if err != nil {
		return nil, err
	}
	restarted, err := m.changes(ctx, o, restarts, spareTime, func(int) error {
		return exec.CommandContext(ctx, b.epochfs, "restart", m.dir).Run()
	})
	if err != nil {
		return nil, err
	}
	quick, err := m.changes(ctx, o, kills, 100*time.Millisecond, kill)
	if err != nil {
		return nil, err
	}
	used, err := anonymous(first.Keeper)
	if err != nil {
		return nil, err
	}
	return []*line{
		counted("kill -9, the next process prepared: wait of a reader, median", "ms", apart, atMost, 10),
		counted("the same, worst", "ms", sample{slices.Max(apart)}, atMost, 50),
		counted("kill -9 every 0.1 s: wait of a reader, median", "ms", quick, no, 0),
		counted("the same, worst", "ms", sample{slices.Max(quick)}, no, 0),
		counted("epochfs restart: wait of a reader, median", "ms", restarted, no, 0),
		counted("the same, worst", "ms", sample{slices.Max(restarted)}, atMost, 50),
		counted("memory of the keeper's own (RssAnon), after the mount", "MiB", sample{fresh}, atMost, 4),
		counted("the same after all that", "MiB", sample{used}, atMost, 4),
	}, nil
}

// takeoverCostRow reads through a mount that is kept and one that is not,
// in turn.
func takeoverCostRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "half"); err != nil {
		return nil, err
	}
	kept, err := b.mount(ctx, b.registry.addr, "half", "--prefetch", "none")
	if err != nil {
		return nil, err
	}
	defer kept.close()
	alone, err := b.mountAlone(ctx, b.registry.addr, "half", "--prefetch", "none")
	if err != nil {
		return nil, err
	}
	defer alone.close()
	// A file that is not complete is read through the process.
	const stretch = 128 << 20
	for _, m := range []*mount{kept, alone} {
		if _, err := sequential(m.path(half.name), 0, stretch); err != nil {
			return nil, err
		}
	}
	read := func(path string) (float64, error) {
		if err := forget(path); err != nil {
			return 0, err
		}
		return sequential(path, 0, stretch)
	}
	opens := func(path string) (float64, error) {
		buf := aligned(pageSize)
		defer unix.Munmap(buf)
		rng := rand.New(rand.NewPCG(1, 10))
		began := time.Now()
		for range 1000 {
			if err := openAndRead(path, buf, rng.Int64N(stretch/pageSize)*pageSize); err != nil {
				return 0, err
			}
		}
		return time.Since(began).Seconds() * 1e3, nil // microseconds each
	}
	var lines []*line
	for _, c := range []struct {
		work, unit string
		f          func(string) (float64, error)
	}{
		{"128 MiB in order through the process", "s", read},
		{"open, read of 4 KiB, close", "µs", opens},
	} {
		ours, theirs, err := b.inTurn(ctx, kept.path(half.name), alone.path(half.name), c.f)
		if err != nil {
			return lines, err
		}
		l := timed(c.work, ours, "not kept", theirs, atMost, 1.01)
		l.Unit = c.unit
		lines = append(lines, l)
	}
	return lines, nil
}

// inTurn measures two paths many times, the other one first in every
// second run.
func (b *bench) inTurn(ctx context.Context, ours, theirs string, f func(path string) (float64, error)) (o, t sample, err error) {
	paths, samples := [2]string{ours, theirs}, [2]*sample{&o, &t}
	for i := range costRuns + 1 {
		for j := range 2 {
			at := (i + j) % 2
			v, err := f(paths[at])
			if err != nil {
				return o, t, err
			}
			if i > 0 { // the first fills the page cache below
				*samples[at] = append(*samples[at], v)
			}
		}
		if err := ctx.Err(); err != nil {
			return o, t, err
		}
	}
	return o, t, nil
}
