package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/shaping"
	"github.com/cocoonstack/epochfs/test/traces"
)

// packedRows measure the packed format.
var packedRows = []row{
	{"packed-size", packedSizeRow},
	{"packed-again", packedAgainRow},
	{"packed-push", packedPushRow},
	{"packed-lives", packedLivesRow},
	{"packed-shared", packedSharedRow},
	{"packed-blocks", packedBlocksRow},
	{"packed-seq", packedSequentialRow},
	{"packed-random", packedRandomRow},
	{"packed-touched", packedTouchedRow},
	{"packed-no-range", packedNoRangeRow},
	{"packed-tar", packedTarRow},
	{"packed-start", packedStartRow},
	{"packed-memory", packedMemoryRow},
	{"granules", granulesRow},
}

const inV2 = "v2, zstd 3, chunks of 4 MiB"

// megabytes is one figure of a row that comes out the same each time.
func megabytes(bytes int64) sample { return sample{float64(bytes) / 1e6} }

// sized compares bytes.
func sized(work string, ours int64, reference string, theirs int64, limit float64) *line {
	sense := atMost
	if limit == 0 {
		sense = no
	}
	l := timed(work, megabytes(ours), reference, megabytes(theirs), sense, limit)
	l.Unit = "MB"
	return l
}

func packedSizeRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	var lines []*line
	for _, w := range []struct {
		what, file string
		limit      float64
	}{{"a guest's memory", f.first, 1.05}, {"a guest's disk", f.disk, 1.15}} {
		ours, err := b.push(ctx, w.file, b.repository(), pushArgs("packed")...)
		if err != nil {
			return nil, err
		}
		theirs, err := b.push(ctx, w.file, b.repository(), pushArgs("v2")...)
		if err != nil {
			return nil, err
		}
		lines = append(lines, sized("stored size of "+w.what, ours.Size, inV2, theirs.Size, w.limit))
	}
	return lines, nil
}

// packedAgainRow pushes a guest's second memory after its first.
func packedAgainRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	again := func(first, second, format string) (int64, error) {
		repository := b.repository()
		if _, err := b.push(ctx, first, repository, pushArgs(format)...); err != nil {
			return 0, err
		}
		r, err := b.push(ctx, second, repository, pushArgs(format)...)
		return r.Sent, err
	}
	cases := []struct{ what, first, second string }{{"memory", f.first, f.second}}
	if f.whole[0] != "" {
		cases = append(cases, struct{ what, first, second string }{"memory and disk", f.whole[0], f.whole[1]})
	}
	var lines []*line
	for _, c := range cases {
		sent := map[string]int64{}
		for _, format := range []string{"packed", "v2", "v1"} {
			if sent[format], err = again(c.first, c.second, format); err != nil {
				return nil, err
			}
		}
		work := "second push, 30 s later, " + c.what
		lines = append(lines, sized(work, sent["packed"], "the same, "+inV2, sent["v2"], 0.35),
			sized(work, sent["packed"], "the same, v1", sent["v1"], 0.17))
	}
	return lines, nil
}

// packedPushRow times the first push and the second.
func packedPushRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	var rss, again sample
	v2 := func() (float64, error) {
		r, err := b.push(ctx, f.first, b.repository(), pushArgs("v2")...)
		return r.seconds, err
	}
	times, err := b.rounds(ctx, func() (float64, error) {
		repository := b.repository()
		first, err := b.push(ctx, f.first, repository, pushArgs("packed")...)
		if err != nil {
			return 0, err
		}
		second, err := b.push(ctx, f.second, repository, pushArgs("packed")...)
		again = append(again, second.seconds)
		rss = append(rss, max(first.rss, second.rss))
		return first.seconds, err
	}, v2)
	if err != nil {
		return nil, err
	}
	return []*line{
		timed("first push of a guest's memory", times[0], "the same, "+inV2, times[1], atMost, 1.1),
		timed("second push, 30 s later", again, "first push, "+inV2, times[1], atMost, 0.6),
		counted("memory of a push at its most", "MB", rss, atMost, 256),
	}, nil
}

const (
	// lives is how many snapshots of one guest are pushed, one after
	// another, and livesSize how much of its memory, in bytes.
	lives     = 200
	livesSize = 32 << 20
)

// packedLivesRow pushes many snapshots of one guest, which changes again
// and again what the traces changed.
func packedLivesRow(ctx context.Context, b *bench) ([]*line, error) {
	t, err := traces.ReadFamily()
	if err != nil {
		return nil, err
	}
	g, repository := newGuestMemory(t), b.repository()
	maps := [2]string{"m2", "m3"}
	var times sample
	var last pushResult
	for i := range lives {
		snapshot := t.Snapshots[maps[i%2]]
		m, err := snapshot.Map(t.Page, livesSize)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(b.dir, "lives.tar")
		if err := writeExport(file, memoryTitle, m, g.payload(m)); err != nil {
			return nil, err
		}
		if last, err = b.push(ctx, file, repository, pushArgs("packed")...); err != nil {
			return nil, err
		}
		times = append(times, last.seconds)
		g.change(t.Changed[[2]string{"m2-m3", "m1-m2"}[i%2]])
	}
	live, err := b.livePacks(ctx, repository)
	if err != nil {
		return nil, err
	}
	work := fmt.Sprintf("%d snapshots of a guest, 32 MiB of its memory: ", lives)
	stored := sized(work+"stored", live.Stored, "in use of it", live.Live, 2.2)
	// Single runs, so each with its neighbours.
	return []*line{
		counted(work+"packs of the last", "packs", sample{float64(live.Packs)}, atMost, 2000),
		stored,
		timed(work+"the last pushes", sample{times[lives-10:].median()}, "those after the first", sample{times[1:11].median()}, atMost, 1.2),
	}, nil
}

// packsOf is inspect's description of packs.
type packsOf struct {
	Packs  int   `json:"packs"`
	Stored int64 `json:"stored"`
	Live   int64 `json:"live"`
}

func (b *bench) livePacks(ctx context.Context, reference string) (p packsOf, err error) {
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return p, err
	}
	defer os.RemoveAll(cache)
	out, err := b.run(ctx, cache, "inspect", "--json", b.registry.addr+"/"+reference)
	if err != nil {
		return p, err
	}
	var all struct {
		Packed *packsOf `json:"packed"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return p, err
	}
	if all.Packed == nil {
		return p, fmt.Errorf("inspect %s says nothing of packs", reference)
	}
	return *all.Packed, nil
}

// readBoth reads the first memory in full, and then the second, each
// through a mount, with one cache. It returns what was fetched for the
// second, and the blocks that it added to the cache, in bytes.
func (b *bench) readBoth(ctx context.Context, in string) (fetched, added int64, err error) {
	first, err := b.packedTag(ctx, "packed", false)
	if err != nil {
		return 0, 0, err
	}
	second, err := b.packedTag(ctx, "packed", true)
	if err != nil {
		return 0, 0, err
	}
	addr, proxy, err := b.link(&shaping.Options{})
	if err != nil {
		return 0, 0, err
	}
	defer proxy.Close()
	cache := filepath.Join(in, "cache")
	var before shaping.Counts
	var blocks [2]int64
	for i, tag := range []string{first, second} {
		before = proxy.Counts()
		dir, err := os.MkdirTemp(b.dir, "mount-")
		if err != nil {
			return 0, 0, err
		}
		m, err := b.mountIn(ctx, dir, cache, addr, tag)
		if err != nil {
			return 0, 0, err
		}
		_, err = sequentialData(m.path(memoryTitle))
		if closeErr := m.close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return 0, 0, err
		}
		if blocks[i], err = allocated(cache); err != nil {
			return 0, 0, err
		}
	}
	return proxy.Counts().Sub(before).Body, blocks[1] - blocks[0], nil
}

// packedSharedRow reads a second snapshot where the first is cached.
func packedSharedRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	repository := b.repository()
	if _, err := b.push(ctx, f.first, repository, pushArgs("packed")...); err != nil {
		return nil, err
	}
	pushed, err := b.push(ctx, f.second, repository, pushArgs("packed")...)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "shared-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	fetched, _, err := b.readBoth(ctx, dir)
	if err != nil {
		return nil, err
	}
	return []*line{sized("fetched to read a second memory, the first in the cache", fetched, "sent by the second push", pushed.Sent, 1.1)}, nil
}

// packedBlocksRow does the same on a file system that shares blocks.
func packedBlocksRow(ctx context.Context, b *bench) ([]*line, error) {
	f, err := b.family()
	if err != nil {
		return nil, err
	}
	dir, unmount, err := b.reflinkFS(ctx)
	if err != nil {
		return nil, err
	}
	defer unmount()
	_, added, err := b.readBoth(ctx, dir)
	if err != nil {
		return nil, err
	}
	return []*line{sized("blocks that a second memory adds to the cache, XFS", added, "its data", f.m.DataSize(), 0.5)}, nil
}

// allocated returns the used bytes of the file system that holds dir. Shared
// blocks count once.
func allocated(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := syncFS(dir); err != nil {
		return 0, err
	}
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// randomIn picks offsets of pages that hold data.
func (f *family) randomIn(n int, seed uint64) []int64 {
	rng := rand.New(rand.NewPCG(seed, 2))
	offsets := make([]int64, n)
	for i := range offsets {
		for run := range f.m.Payload(rng.Int64N(f.m.DataSize()/pageSize)*pageSize, pageSize) {
			offsets[i] = run.Offset
		}
	}
	return offsets
}
