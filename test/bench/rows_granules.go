package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/shaping"
)

// cut is a way to store the family: in granules of some size, or in
// chunks, and what that comes to.
type cut struct {
	granule int64 // bytes; 0: v2
	tag     string

	memory, disk, again int64 // bytes stored, stored, sent
	index               int64 // bytes
	cpu                 float64
	touched, random     sample // MB
	seconds             sample
}

// granulesRow compares sizes of granules, with v2 as reference.
func granulesRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.fewer()
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	touched, err := touchedPages(f)
	if err != nil {
		return nil, err
	}
	cuts := []*cut{{}, {granule: 16 << 10}, {granule: 32 << 10}, {granule: 64 << 10}, {granule: 128 << 10}}
	var reads []func() (float64, error)
	for _, c := range cuts {
		if err := b.storeCut(ctx, f, c); err != nil {
			return nil, err
		}
		for offsets, fetched := range map[*[]int64]*sample{&touched: &c.touched, ptr(f.randomIn(randomReads, 1)): &c.random} {
			_, err := b.throughLink(ctx, shaping.Options{}, c.tag, fetched, func(path string) (float64, error) {
				seconds, _, err := randomly(path, *offsets, 0)
				return seconds, err
			})
			if err != nil {
				return nil, err
			}
		}
		reads = append(reads, func() (float64, error) {
			return b.throughLink(ctx, shaped, c.tag, nil, func(path string) (float64, error) {
				return sequential(path, 0, f.m.Size())
			})
		})
	}
	times, err := b.holding().rounds(ctx, reads...)
	if err != nil {
		return nil, err
	}
	var lines []*line
	for i, c := range cuts[1:] {
		lines = append(lines, c.lines(cuts[0], times[i+1], times[0])...)
	}
	return lines, nil
}

func ptr[T any](v T) *T { return &v }

// lines are the figures of a cut beside those of v2.
func (c *cut) lines(v2 *cut, ours, theirs sample) []*line {
	work := fmt.Sprintf("%d KiB: ", c.granule>>10)
	cpu := timed(work+"processor time of the first push of a memory", sample{c.cpu}, inV2, sample{v2.cpu}, no, 0)
	fetched := func(what string, ours, theirs sample, limit float64) *line {
		l := counted(work+what, "MB", ours, atMost, limit)
		l.Note = "v2 " + number(theirs.median()) + " MB"
		return l
	}
	return []*line{
		sized(work+"stored size of a memory", c.memory, inV2, v2.memory, 1.05),
		sized(work+"stored size of a disk", c.disk, inV2, v2.disk, 1.15),
		sized(work+"second push, 30 s later", c.again, inV2, v2.again, 0.35),
		counted(work+"index of a memory", "MB", megabytes(c.index), no, 0),
		fetched("fetched for the pages that a guest's start uses", c.touched, v2.touched, 45),
		fetched(fmt.Sprintf("fetched for %d random reads of 4 KiB", randomReads), c.random, v2.random, 10),
		timed(work+"cold sequential read, shaped", ours, inV2, theirs, atMost, 1),
		cpu,
	}
}

// storeCut pushes the family.
func (b *bench) storeCut(ctx context.Context, f *family, c *cut) error {
	c.tag = fmt.Sprintf("granule-%d", c.granule)
	before := processorTime()
	first, err := b.pushCut(ctx, c, f.first, repo+":"+c.tag, "")
	if err != nil {
		return err
	}
	c.cpu = processorTime() - before
	c.memory = first.TotalSize
	m, err := manifest.Parse(first.ManifestBytes)
	if err != nil {
		return err
	}
	for _, l := range m.Layers {
		if l.MediaType == manifest.MediaTypeIndex {
			c.index += l.Size
		}
	}
	disk, err := b.pushCut(ctx, c, f.disk, b.repository(), "")
	if err != nil {
		return err
	}
	c.disk = disk.TotalSize
	again, err := b.pushCut(ctx, c, f.second, repo+":"+c.tag+"-later", repo+":"+c.tag)
	if err != nil {
		return err
	}
	c.again = again.SentBytes
	return nil
}

// pushCut pushes an export from this process: the command has no flag for
// the size of granules.
func (b *bench) pushCut(ctx context.Context, c *cut, file, to, base string) (*snapshot.PushResult, error) {
	cfg := mounting.Config{NoCache: true}
	ref, err := cfg.Reference(b.registry.addr + "/" + to)
	if err != nil {
		return nil, err
	}
	reg, err := cfg.Registry(ref)
	if err != nil {
		return nil, err
	}
	defer reg.Close()
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	opts := snapshot.PushOptions{Name: ref.Repository, Tag: ref.Tag, Input: in, Zstd: 3}
	if opts.Packed, opts.Granule = c.granule > 0, c.granule; c.granule == 0 {
		opts.Chunk = 4 << 20
	} else if base != "" {
		opened, err := mounting.Open(ctx, b.registry.addr+"/"+base, cfg)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		opts.Base = &snapshot.PushBase{Artifact: opened.Artifact, Name: opened.Reference.Repository}
	}
	return (&snapshot.Pusher{Uploader: reg}).Push(ctx, opts)
}

// processorTime is what this process has used, in seconds.
func processorTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // has no other error than a wrong argument
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
