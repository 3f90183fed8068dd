package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// The files that are read. Memory and disk are a small VM's; the others
// are for rows that need something special, or take too long otherwise.
var (
	memory   = newDataset("memory-ranges", 2<<30, 640<<20, 4000, 1)
	disk     = newDataset("cow.raw", 4<<30, 320<<20, 2500, 2)
	half     = newDataset("memory-ranges", 1<<30, 320<<20, 2000, 6)
	slow     = newDataset("memory-ranges", 256<<20, 64<<20, 400, 3)
	oneGB    = newDataset("memory-ranges", 1<<30, 16<<20, 2000, 4)
	manyGB   = newDataset("memory-ranges", 100<<30, 16<<20, 2000, 4)
	segments = newDataset("memory-ranges", 4<<30, 320<<20, 30000, 2)
)

// artifacts are what can be mounted, by tag.
var artifacts = map[string]struct {
	form form
	sets []*dataset
}{
	"v1":       {form{pieces: true}, []*dataset{memory, disk}},
	"v1-plain": {form{}, []*dataset{memory, disk}},
	"v2":       {form{chunk: 4 << 20}, []*dataset{memory}},
	"v2-large": {form{chunk: 512 << 20}, []*dataset{half}},
	"half":     {form{pieces: true}, []*dataset{half}},
	"slow":     {form{pieces: true}, []*dataset{slow}},
	"1g":       {form{}, []*dataset{oneGB}},
	"100g":     {form{}, []*dataset{manyGB}},
	"segments": {form{}, []*dataset{segments}},
	"huge":     {form{}, []*dataset{huge}},
	"image":    {form{}, []*dataset{image}},
	"brief":    {form{pieces: true}, []*dataset{brief}},
}

// shaped is the link of most rows.
var shaped = shaping.Options{Delay: 20 * time.Millisecond, PerConn: 100e6}

var allRows = []row{
	{"seq", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.sequentialRow(ctx, "cold sequential read, shaped", "v1", memory, &shaped, 0.25)
	}},
	{"seq-link", func(ctx context.Context, b *bench) ([]*line, error) {
		opts := shaping.Options{Delay: 20 * time.Millisecond, Total: 125e6}
		return b.sequentialRow(ctx, "cold sequential read, 20 ms, 125 MB/s in all", "half", half, &opts, 1.03)
	}},
	{"seq-cpu", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.fewer().sequentialRow(ctx, "cold sequential read, loopback as it is", "v1", memory, nil, 1.15)
	}},
	{"seq-v2", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.fewer().sequentialRow(ctx, "cold sequential read, v2 in zstd chunks of 4 MiB, shaped", "v2", memory, &shaped, 0.2)
	}},
	{"seq-frames", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.fewer().sequentialRow(ctx, "cold sequential read, v2 in one zstd frame, shaped", "v2-large", half, &shaped, 0)
	}},
	{"seq-far", func(ctx context.Context, b *bench) ([]*line, error) {
		opts := shaping.Options{Delay: 300 * time.Millisecond, PerConn: 10e6}
		return b.fewer().sequentialRow(ctx, "cold 64 MiB, 300 ms a request, 10 MB/s a connection", "slow", slow, &opts, 0.25)
	}},
	{"random", randomRow},
	{"prefetch", prefetchRow},
	{"mmap", func(ctx context.Context, b *bench) ([]*line, error) { return mmapRow(ctx, b.fewer()) }},
	{"working-set", workingSetRow},
	{"local", localRow},
	{"partly", partlyRow},
	{"start", startRow},
	{"memory", memoryRow},
	{"no-range", func(ctx context.Context, b *bench) ([]*line, error) { return noRangeRow(ctx, b.fewer()) }},
	{"floor", func(ctx context.Context, b *bench) ([]*line, error) { return floorRow(ctx, b.fewer()) }},
	{"check", checkRow},
}

// moreRows are measured only if they are named.
var moreRows = []row{
	{"seq-data", func(ctx context.Context, b *bench) ([]*line, error) {
		r := reading{"cold sequential read, holes left out by lseek, loopback as it is", "v1", memory, nil, 0, sequentialData}
		return b.fewer().readingRow(ctx, r)
	}},
}

// prepare makes sure that the artifact with a tag is in the registry.
func (b *bench) prepare(ctx context.Context, tag string) error {
	a := artifacts[tag]
	for _, d := range a.sets {
		if _, err := b.writer.payload(ctx, a.form.chunk, d); err != nil {
			return err
		}
	}
	if b.pushed[tag] {
		return nil
	}
	if err := b.writer.push(ctx, tag, a.form, a.sets...); err != nil {
		return err
	}
	b.pushed[tag] = true
	return nil
}

// blobURL is where a dataset's raw blob can be downloaded.
func (b *bench) blobURL(ctx context.Context, addr string, d *dataset) (string, error) {
	made, err := b.writer.payload(ctx, 0, d)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("http://%s/v2/%s/blobs/%s", addr, repo, made.blobs[0].digest), nil
}

// link starts a proxy before the registry, or none, and returns where to
// connect to.
func (b *bench) link(opts *shaping.Options) (addr string, p *shaping.Proxy, err error) {
	if opts == nil {
		return b.registry.addr, nil, nil
	}
	p, err = shaping.Start(b.registry.addr, *opts)
	if err != nil {
		return "", nil, err
	}
	return p.Addr(), p, nil
}

// fewer is b for rows that take long, or say little.
func (b *bench) fewer() *bench {
	f := *b
	f.runs = max(1, b.runs-1)
	return &f
}

// keeping is b for rows in which each run has mounts and caches of its own, so
// that nothing in the page cache is known to the next but the programs, and the
// blobs of the registry.
func (b *bench) keeping() *bench {
	k := *b
	k.keep = true
	return &k
}

// pair measures ours and theirs in turn, each from a settled state, the
// other one first in every second run.
func (b *bench) pair(ctx context.Context, ours, theirs func() (float64, error)) (o, t sample, err error) {
	all, err := b.rounds(ctx, ours, theirs)
	return all[0], all[1], err
}

// rounds measures each of several, one after another, round by round; each
// round begins with another of them.
func (b *bench) rounds(ctx context.Context, measure ...func() (float64, error)) ([]sample, error) {
	all := make([]sample, len(measure))
	for i := range b.runs {
		for j := range measure {
			if err := ctx.Err(); err != nil {
				return all, err
			}
			if err := b.settle(); err != nil {
				return all, err
			}
			n := (i + j) % len(measure)
			v, err := measure[n]()
			if err != nil {
				return all, err
			}
			all[n] = append(all[n], v)
		}
	}
	return all, nil
}

// sequentialRow reads all of a file, with its holes, through a cold mount,
// against curl of the raw blob.
func (b *bench) sequentialRow(ctx context.Context, work, tag string, d *dataset, opts *shaping.Options, limit float64) ([]*line, error) {
	return b.readingRow(ctx, reading{work, tag, d, opts, limit, func(path string) (float64, error) {
		return sequential(path, 0, d.m.Size())
	}})
}

// reading is a way to read one file of an artifact, cold.
type reading struct {
	work  string
	tag   string
	d     *dataset
	link  *shaping.Options // nil: the registry itself
	limit float64          // of the time curl takes; 0: no goal
	read  func(path string) (seconds float64, err error)
}

func (b *bench) readingRow(ctx context.Context, r reading) ([]*line, error) {
	if err := b.prepare(ctx, r.tag); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(r.link)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		defer proxy.Close()
	}
	url, err := b.blobURL(ctx, addr, r.d)
	if err != nil {
		return nil, err
	}
	with := *b
	if r.d == memory {
		with.held = large
	}
	var fetched, requests sample
	ours, theirs, err := with.pair(ctx, func() (float64, error) {
		m, err := b.mount(ctx, addr, r.tag)
		if err != nil {
			return 0, err
		}
		defer m.close()
		var before shaping.Counts
		if proxy != nil {
			before = proxy.Counts()
		}
		seconds, err := r.read(m.path(r.d.name))
		if proxy != nil {
			c := proxy.Counts().Sub(before)
			fetched = append(fetched, float64(c.Body)/1e6)
			requests = append(requests, float64(c.Requests))
		}
		return seconds, err
	}, func() (float64, error) { return b.curl(ctx, url) })
	if err != nil {
		return nil, err
	}
	sense := atMost
	if r.limit == 0 {
		sense = no
	}
	l := timed(r.work, ours, "curl of the raw blob", theirs, sense, r.limit)
	if proxy != nil {
		l.Note = fmt.Sprintf("%s requests, %s MB", number(requests.median()), number(fetched.median()))
	}
	return []*line{l}, nil
}
