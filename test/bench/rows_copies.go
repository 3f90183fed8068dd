package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// Files without holes worth the name, so that a row's reference moves the bytes
// that the mount moves.
var (
	huge  = newDataset("memory-ranges", 4202<<20, 4198<<20, 64, 11)
	image = newDataset("cow.raw", 614<<20, 613<<20, 64, 12)
	brief = newDataset("memory-ranges", 239<<20, 238<<20, 64, 13)
)

// copiesRows measure what a cold read costs beside a download.
var copiesRows = []row{
	{"cold-huge", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.copiesRow(ctx, "4.1 GiB", "huge", huge, 1.3)
	}},
	{"cold-image", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.copiesRow(ctx, "643 MB", "image", image, 1.4)
	}},
	{"cold-brief", briefRow},
	{"cold-slow-disk", slowDiskRow},
}

// usage is what a mount's serving process and its files have taken.
type usage struct {
	kernel float64 // seconds in the kernel
	memory float64 // bytes: of the process alone, and of the machine's page cache
}

// usageOf returns it for the process that serves a mount. It does not open a file of
// the mount: that may drop pages.
func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const stime = 12 // counted from the state
	ticks, err := strconv.ParseFloat(fields[stime], 64)
	if err != nil {
		return u, err
	}
	u.kernel = ticks / 100 // USER_HZ
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	kib, _, _ := strings.Cut(field(string(status), "RssAnon"), " ")
	anon, err := strconv.ParseFloat(kib, 64)
	if err != nil {
		return u, err
	}
	machine, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return u, err
	}
	kib, _, _ = strings.Cut(field(string(machine), "Cached"), " ")
	cached, err := strconv.ParseFloat(kib, 64)
	u.memory = (anon + cached) * 1024
	return u, err
}

// settled returns the usage when the cache's disk has caught up and the file is
// sealed: when no pages have gone for a while. Those of a file that is not sealed
// stay for least at most, and then go every ten seconds.
func (m *mount) settled() (u usage, err error) {
	const least, still, most = 22 * time.Second, 12 * time.Second, 90 * time.Second
	since := time.Now()
	for began := since; time.Since(began) < least || time.Since(since) < still && time.Since(began) < most; {
		now, err := usageOf(m.PID)
		if err != nil {
			return u, err
		}
		if now.memory < u.memory-(1<<20) || u.memory == 0 {
			since = time.Now()
		}
		u = now
		time.Sleep(20 * time.Millisecond)
	}
	return u, nil
}

// copiesRow reads a file without digests of its pieces, on loopback, and shows
// what its bytes take of memory and of the kernel's time.
func (b *bench) copiesRow(ctx context.Context, size, tag string, d *dataset, limit float64) ([]*line, error) {
	if err := b.prepare(ctx, tag); err != nil {
		return nil, err
	}
	url, err := b.blobURL(ctx, b.registry.addr, d)
	if err != nil {
		return nil, err
	}
	n := float64(d.m.DataSize())
	var atEnd, memory, kernel sample
	ours, theirs, err := b.holding().pair(ctx, func() (float64, error) {
		m, err := b.mount(ctx, b.registry.addr, tag)
		if err != nil {
			return 0, err
		}
		defer m.close()
		before, err := usageOf(m.PID)
		if err != nil {
			return 0, err
		}
		seconds, err := sequential(m.path(d.name), 0, d.m.Size())
		if err != nil {
			return 0, err
		}
		end, err := usageOf(m.PID)
		if err != nil {
			return 0, err
		}
		after, err := m.settled()
		atEnd = append(atEnd, (end.memory-before.memory)/n)
		memory = append(memory, (after.memory-before.memory)/n)
		kernel = append(kernel, (after.kernel-before.kernel)/n*(1<<30))
		return seconds, err
	}, func() (float64, error) { return b.curl(ctx, url) })
	if err != nil {
		return nil, err
	}
	floor, err := b.passedLines(ctx, url, d, keepAsIs, theirs)
	if err != nil {
		return nil, err
	}
	return append([]*line{
		timed("cold sequential read of "+size+", loopback as it is", ours, "curl of the raw blob", theirs, atMost, limit),
		counted("memory that it adds, page cache and the process's own, by its bytes, once the disk has caught up", "×", memory, atMost, 1.15),
		counted("the same at the end of the read", "×", atEnd, no, 0),
		counted("time in the kernel of the serving process until then, by GiB", "s", kernel, atMost, 1.9),
	}, floor...), nil
}

// passedLines show what a simple mount costs.
func (b *bench) passedLines(ctx context.Context, url string, d *dataset, most keeping, curl sample) ([]*line, error) {
	var kernel, bare sample
	kept, passed, err := b.holding().pair(ctx, b.passed(ctx, url, d, most, &kernel), b.passed(ctx, url, d, keepNone, &bare))
	if err != nil {
		return nil, err
	}
	does := map[keeping]string{keepAsIs: "fetches, writes and answers", keepHashed: "fetches, hashes, writes and answers"}[most]
	return []*line{
		timed("the same by a mount that only "+does, kept, "curl of the raw blob", curl, no, 0),
		counted("time in the kernel of its process at the end of the read, by GiB", "s", kernel, no, 0),
		timed("the same by a mount that only fetches and answers", passed, "curl of the raw blob", curl, no, 0),
		counted("time in the kernel of its process, by GiB", "s", bare, no, 0),
	}, nil
}

// passed returns a cold read through such a mount. It adds the seconds by GiB that
// the mount's process was in the kernel.
func (b *bench) passed(ctx context.Context, url string, d *dataset, k keeping, kernel *sample) func() (float64, error) {
	return func() (float64, error) {
		self, err := os.Executable()
		if err != nil {
			return 0, err
		}
		path := filepath.Join(b.dir, "passed.data")
		defer os.Remove(path)
		n := d.m.DataSize()
		m, err := b.startForeign(ctx, self, func(dir string) []string {
			return []string{passing, dir, url, strconv.FormatInt(n, 10), string(k), path}
		})
		if err != nil {
			return 0, err
		}
		defer m.stop()
		before, err := usageOf(m.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		seconds, err := sequential(filepath.Join(m.dir, passedName), 0, n)
		if err != nil {
			return 0, err
		}
		after, err := usageOf(m.cmd.Process.Pid)
		*kernel = append(*kernel, (after.kernel-before.kernel)/float64(n)*(1<<30))
		return seconds, err
	}
}

// briefRow reads so little that the beginning counts, and shows what a
// client needs for the same bytes that knows all it will want, and keeps nothing.
func briefRow(ctx context.Context, b *bench) ([]*line, error) {
	lines, err := b.sequentialRow(ctx, "cold sequential read of 250 MB, shaped", "brief", brief, &shaped, 0.33)
	if err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaped)
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	url, err := b.blobURL(ctx, "", brief)
	if err != nil {
		return nil, err
	}
	var all []request
	const each = 4 << 20
	for off, n := int64(0), brief.m.DataSize(); off < n; off += each {
		all = append(all, request{path: strings.TrimPrefix(url, "http://"), span: fmt.Sprintf("bytes=%d-%d", off, min(off+each, n)-1)})
	}
	var bare sample
	for range b.runs {
		began := time.Now()
		if err := sendAll(ctx, "http://"+addr, all); err != nil {
			return nil, err
		}
		bare = append(bare, time.Since(began).Seconds())
	}
	text := fmt.Sprintf("the same bytes by a client that does nothing else, in %d requests, %d at a time", len(all), bareRequests)
	lines = append(lines, timed(text, bare, "curl of the raw blob", lines[0].Theirs, no, 0))
	url, err = b.blobURL(ctx, addr, brief)
	if err != nil {
		return nil, err
	}
	floor, err := b.passedLines(ctx, url, brief, keepHashed, lines[0].Theirs)
	return append(lines, floor...), err
}

// slowDiskRow reads with the cache on a disk that is slower than the link,
// beside the same with a disk that is not: once with the kernel's dirty pages
// between, and once without.
func slowDiskRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "image"); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaping.Options{Delay: time.Millisecond, Total: 400e6})
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	var lines []*line
	for _, how := range []struct {
		options, text string
		goal          sense
	}{
		{"loop", "a disk of 50 MB/s", atMost},
		{"loop,sync", "a disk of 50 MB/s that each write waits for", no},
	} {
		const rate = 50e6
		slow, stop, err := b.slowDisk(ctx, 2<<30, rate, how.options)
		if err != nil {
			return nil, err
		}
		var kept, all sample
		ours, theirs, err := b.pair(ctx, b.readOn(ctx, slow, addr, &kept), b.readOn(ctx, b.dir, addr, &all))
		stop()
		if err != nil {
			return nil, err
		}
		l := timed("cold sequential read of 643 MB, 400 MB/s in all, the cache on "+how.text, ours, "the same, a disk as it is", theirs, how.goal, 1.2)
		l.Note = fmt.Sprintf("%s MB were kept, and %s", number(kept.median()), number(all.median()))
		lines = append(lines, l)
	}
	return lines, nil
}

// readOn returns a cold read with a cache in dir. It adds how many megabytes are
// in the cache at the end.
func (b *bench) readOn(ctx context.Context, dir, addr string, kept *sample) func() (float64, error) {
	return func() (float64, error) {
		at, err := os.MkdirTemp(dir, "mount-")
		if err != nil {
			return 0, err
		}
		mnt, err := os.MkdirTemp(b.dir, "mount-")
		if err != nil {
			return 0, err
		}
		m, err := b.mountIn(ctx, mnt, at, addr, "image")
		if err != nil {
			return 0, err
		}
		seconds, err := sequential(m.path(image.name), 0, image.m.Size())
		if have, e := m.cached(image.name); e == nil && err == nil {
			*kept = append(*kept, float64(have)/1e6)
		}
		if e := m.close(); err == nil {
			err = e
		}
		if e := os.RemoveAll(at); err == nil {
			err = e
		}
		return seconds, err
	}
}
