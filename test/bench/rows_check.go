package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/shaping"
)

// checkRow does not measure: it compares bytes while many readers with
// all patterns share one cold mount, of each format.
func checkRow(ctx context.Context, b *bench) ([]*line, error) {
	var lines []*line
	for _, tag := range []string{"v1", "v1-plain", "v2"} {
		wrong, err := b.mixedReaders(ctx, tag)
		if err != nil {
			return lines, err
		}
		lines = append(lines, counted("16 readers of all patterns, cold, shaped, "+tag+": reads with wrong bytes", "", sample{wrong}, atMost, 0))
	}
	l, err := b.fioVerify(ctx)
	if err != nil {
		return lines, err
	}
	return append(lines, l), nil
}

// mixedReaders returns how many reads were not what the dataset is.
func (b *bench) mixedReaders(ctx context.Context, tag string) (float64, error) {
	if err := b.prepare(ctx, tag); err != nil {
		return 0, err
	}
	addr, proxy, err := b.link(&shaped)
	if err != nil {
		return 0, err
	}
	defer proxy.Close()
	m, err := b.mount(ctx, addr, tag)
	if err != nil {
		return 0, err
	}
	defer m.close()
	const readers = 16
	var wrong atomic.Int64
	var g errgroup.Group
	for i := range readers {
		g.Go(func() error {
			f, err := os.Open(m.path(memory.name))
			if err != nil {
				return err
			}
			defer f.Close()
			rng := rand.New(rand.NewPCG(uint64(i), 8))
			for off, n := range pattern(i, memory.m.Size(), rng) {
				got := make([]byte, n)
				if _, err := f.ReadAt(got, off); err != nil {
					return err
				}
				if !bytes.Equal(got, memory.expect(off, n)) {
					wrong.Add(1)
				}
			}
			return ctx.Err()
		})
	}
	return float64(wrong.Load()), g.Wait()
}

// pattern is what reader i reads, 24 MiB or so: forwards, backwards, in
// strides, or at random and odd offsets.
func pattern(i int, size int64, rng *rand.Rand) func(yield func(off int64, n int) bool) {
	return func(yield func(int64, int) bool) {
		const total, step = 24 << 20, 128 << 10
		start := rng.Int64N(size/2/pageSize) * pageSize
		for k := range int64(total / step) {
			off, n := start+k*step, step
			switch i % 4 {
			case 1:
				off = start + total - (k+1)*step
			case 2:
				off = start + k*step*8
			case 3:
				n = 1 + rng.IntN(step)
				off = rng.Int64N(size - int64(n))
			}
			if off+int64(n) > size || !yield(off, n) {
				return
			}
		}
	}
}

// expect returns what n bytes from off on must be.
func (d *dataset) expect(off int64, n int) []byte {
	first := off / pageSize * pageSize
	last := min((off+int64(n)+pageSize-1)/pageSize*pageSize, d.m.Size())
	p := make([]byte, last-first)
	from := d.m.PayloadAt(first)
	at := from
	for run := range d.m.Payload(from, d.m.PayloadAt(last)-from) {
		d.fill(p[run.Offset-first:][:run.Length], at)
		at += run.Length
	}
	return p[off-first:][:n]
}

// fioVerify has fio look at a file that fio has written, through a mount.
func (b *bench) fioVerify(ctx context.Context) (*line, error) {
	const work = "fio --readonly --verify of what fio wrote"
	binary, err := exec.LookPath("fio")
	if err != nil {
		return &line{Work: work, Reference: "fio is not here"}, nil
	}
	dir, err := os.MkdirTemp(b.dir, "fio-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	const name, size = "cow.raw", 64 << 20
	fio := func(path string, args ...string) error {
		args = append([]string{"--name=laid", "--filename=" + path, fmt.Sprint("--size=", size), "--bs=64k", "--verify=crc32c"}, args...)
		cmd := exec.CommandContext(ctx, binary, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("fio: %w: %s", err, out)
		}
		return nil
	}
	laid := filepath.Join(dir, name)
	if err := fio(laid, "--rw=randwrite", "--do_verify=0"); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(laid)
	if err != nil {
		return nil, err
	}
	d := &dataset{name: name, m: sparse.Dense(size), seed: 99, data: data}
	if err := b.writer.push(ctx, "fio", form{pieces: true}, d); err != nil {
		return nil, err
	}
	proxy, err := shaping.Start(b.registry.addr, shaped)
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	m, err := b.mount(ctx, proxy.Addr(), "fio")
	if err != nil {
		return nil, err
	}
	defer m.close()
	failed := sample{0}
	if err := fio(m.path(name), "--readonly", "--rw=randread", "--verify_fatal=1"); err != nil {
		failed[0] = 1
	}
	return counted(work+": failures", "", failed, atMost, 0), nil
}
