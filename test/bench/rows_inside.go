package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/test/shaping"
)

var insideRows = []row{
	{"inside", insideRow},
	{"inside-diff", insideDiffRow},
	{"inside-local", insideLocalRow},
}

// far is the link of looks: what counts is how often they ask.
var far = shaping.Options{Delay: 20 * time.Millisecond}

// looked is the cost of one command.
type looked struct {
	seconds  float64
	requests float64
	fetched  float64 // MB
	out      []byte
}

// look runs a command with an empty cache, on the far link.
func (b *bench) look(ctx context.Context, args func(ref func(tag string) string) []string) (looked, error) {
	addr, proxy, err := b.link(&far)
	if err != nil {
		return looked{}, err
	}
	defer proxy.Close()
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return looked{}, err
	}
	defer os.RemoveAll(cache)
	ref := func(tag string) string { return addr + "/" + repo + ":" + tag }
	began := time.Now()
	out, err := b.run(ctx, cache, args(ref)...)
	took := time.Since(began).Seconds()
	c := proxy.Counts()
	return looked{took, float64(c.Requests), float64(c.Body) / 1e6, out}, err
}

// run runs epochfs with a cache.
func (b *bench) run(ctx context.Context, cache string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.epochfs, append([]string{"--quiet", "--cache-dir", cache}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("epochfs %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

// guestForm is a format in which the guest's disks are pushed.
type guestForm struct {
	name string
	unit string                  // of which it has digests
	tag  func(tag string) string // of a snapshot in it
}

var guestForms = []guestForm{
	{"v1", "pieces", func(tag string) string { return tag }},
	{"packed", "granules", packedTag},
}

// guestLook is a look into a cold disk.
type guestLook struct {
	work     string
	args     []string // the reference's tag is the second
	requests float64  // at most, 0 for any
	fetched  float64  // MB at most
	lines    int      // of output, 0 for any
}

// insideRow looks into a cold disk.
func insideRow(ctx context.Context, b *bench) ([]*line, error) {
	if _, err := b.guestDisks(ctx); err != nil {
		return nil, err
	}
	var lines []*line
	for _, w := range []guestLook{
		{"ls -l of a directory of 200", []string{"ls", "guest", "-l", "cow.raw:/dir050"}, 12, 2, guestFiles + 1},
		{"cat of 5 KB", []string{"cat", "guest", "cow.raw:/dir050/file100"}, 12, 2, 0},
		{"ls -R of 20,000 files", []string{"ls", "guest", "-R", "cow.raw:/"}, 60, 30, 0},
		{"cat of 5 KB, journal of 64 MiB, 20 MB of it used", []string{"cat", "guest-dirty", "cow.raw:/dir050/file100"}, 0, 25, 0},
	} {
		for _, form := range guestForms {
			both, err := b.guestLooked(ctx, w, form)
			if err != nil {
				return lines, err
			}
			lines = append(lines, both...)
		}
	}
	return lines, nil
}

// guestLooked measures one look in one format.
func (b *bench) guestLooked(ctx context.Context, w guestLook, form guestForm) ([]*line, error) {
	var requests, fetched, seconds sample
	for range b.runs {
		l, err := b.look(ctx, func(ref func(tag string) string) []string {
			return append([]string{w.args[0], ref(form.tag(w.args[1]))}, w.args[2:]...)
		})
		if err != nil {
			return nil, err
		}
		if n := bytes.Count(l.out, []byte("\n")); w.lines > 0 && n != w.lines {
			return nil, fmt.Errorf("%s: %d lines, want %d", w.work, n, w.lines)
		}
		requests, fetched, seconds = append(requests, l.requests), append(fetched, l.fetched), append(seconds, l.seconds)
	}
	work := fmt.Sprintf("%s, %s, cold, 20 ms a request", w.work, form.name)
	asked := counted(work, "requests", requests, atMost, w.requests)
	if w.requests == 0 {
		asked = counted(work, "requests", requests, no, 0)
	}
	asked.Note = fmt.Sprintf("%s s", number(seconds.median()))
	return []*line{asked, counted("fetched for it, "+form.name, "MB", fetched, atMost, w.fetched)}, nil
}

// insideDiffRow compares two disks, with and without contents.
func insideDiffRow(ctx context.Context, b *bench) ([]*line, error) {
	if _, err := b.guestDisks(ctx); err != nil {
		return nil, err
	}
	var lines []*line
	for _, form := range guestForms {
		some, err := b.guestDiff(ctx, form)
		if lines = append(lines, some...); err != nil {
			return lines, err
		}
	}
	return lines, nil
}

// guestDiff compares two disks in one format. The goal is twice what differs,
// and what ls -R fetches.
func (b *bench) guestDiff(ctx context.Context, form guestForm) ([]*line, error) {
	units, err := b.look(ctx, func(ref func(tag string) string) []string {
		return []string{"diff", "--json", ref(form.tag("guest")), ref(form.tag("guest-later")), "cow.raw"}
	})
	if err != nil {
		return nil, err
	}
	var change struct {
		Differs int64 `json:"differs"`
	}
	if err := json.Unmarshal(units.out, &change); err != nil {
		return nil, err
	}
	all, err := b.look(ctx, func(ref func(tag string) string) []string {
		return []string{"ls", ref(form.tag("guest")), "-R", "cow.raw:/"}
	})
	if err != nil {
		return nil, err
	}
	limit := 2*float64(change.Differs)/1e6 + all.fetched
	var lines []*line
	for _, flags := range [][]string{nil, {"--checksum"}} {
		var fetched, requests sample
		for range b.runs {
			l, err := b.look(ctx, func(ref func(tag string) string) []string {
				return append([]string{"diff", ref(form.tag("guest")), ref(form.tag("guest-later")), "cow.raw:/"}, flags...)
			})
			if err != nil {
				return lines, err
			}
			if n := bytes.Count(l.out, []byte("M  ")); n != guestChanged {
				return lines, fmt.Errorf("%d files differ, want %d:\n%s", n, guestChanged, l.out)
			}
			fetched, requests = append(fetched, l.fetched), append(requests, l.requests)
		}
		work := strings.TrimSpace("diff of 20,000 files, 50 of which differ " + strings.Join(flags, ""))
		l := counted(fmt.Sprintf("%s, %s, fetched", work, form.name), "MB", fetched, atMost, limit)
		l.Note = fmt.Sprintf("%s requests; %s that differ: %s MB, ls -R: %s MB",
			number(requests.median()), form.unit, number(float64(change.Differs)/1e6), number(all.fetched))
		lines = append(lines, l)
	}
	return lines, nil
}

// insideLocalRow reads files of a disk that is local.
func insideLocalRow(ctx context.Context, b *bench) ([]*line, error) {
	disk, err := b.guestDisks(ctx)
	if err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	ref := b.registry.addr + "/" + repo + ":guest"
	for _, file := range []string{"cow.raw", "cow.raw:/big"} { // all of it, hashed
		if err := b.discard(ctx, b.epochfs, "--quiet", "--cache-dir", cache, "cat", ref, file); err != nil {
			return nil, err
		}
	}
	var lines []*line
	for _, w := range []struct {
		work, file string
		sense      sense
	}{
		{"cat of 128 MiB, local", "/big", atMost},
		// Two processes start, which is all that takes time.
		{"cat of 5 KB, local", "/dir050/file100", no},
	} {
		ours, theirs, err := b.pair(ctx, func() (float64, error) {
			return b.timed(ctx, b.epochfs, "--quiet", "--offline", "--cache-dir", cache, "cat", ref, "cow.raw:"+w.file)
		}, func() (float64, error) { return b.timed(ctx, "debugfs", "-R", "cat "+w.file, disk) })
		if err != nil {
			return lines, err
		}
		lines = append(lines, timed(w.work, ours, "debugfs -R cat", theirs, w.sense, 2))
	}
	return lines, nil
}

// timed runs a program without reading its output, once to warm up.
func (b *bench) timed(ctx context.Context, name string, args ...string) (float64, error) {
	if err := b.discard(ctx, name, args...); err != nil {
		return 0, err
	}
	began := time.Now()
	err := b.discard(ctx, name, args...)
	return time.Since(began).Seconds(), err
}

func (b *bench) discard(ctx context.Context, name string, args ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	var errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = null, &errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(errOut.String()))
	}
	return nil
}
