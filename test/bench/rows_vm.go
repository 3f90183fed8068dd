package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cocoonstack/epochfs/test/vm"
)

// vmRows start a real guest. The figure is the first turn of its work, from
// when QEMU began to load its state.
var vmRows = []row{
	{"vm", vmRow},
	{"vm-slow", vmSlowRow},
	{"vm-again", vmAgainRow},
	{"vm-child", vmChildRow},
	{"vm-record", vmRecordRow},
}

const (
	firstTurn  = "a guest's first turn"
	localFiles = "local files"

	v1WithoutSet     = "cold, v1, no working set"
	packedWithoutSet = "cold, packed, no working set"
	v1WithSet        = "cold, v1 with its working set"
	packedWithSet    = "cold, packed with its working set"
	downloadedFirst  = "all downloaded first by curl, a stream a blob"

	// recordTurns is how many turns of the guest's work a recording has, and
	// recordRuns how many recordings are merged.
	recordTurns = 2
	recordRuns  = 3
)

// firstTurnOf is the work of a start of the guest.
func firstTurnOf(ctx context.Context, g *vm.Guest) work {
	return func(m *mount, end func() error) (float64, error) {
		return resume(ctx, g, m.dir, 1, end)
	}
}

// fromLocal measures a start from the files of the first snapshot.
func fromLocal(ctx context.Context, g *vm.Guest) func() (float64, error) {
	return func() (float64, error) {
		return resume(ctx, g, g.Dir(vm.Snapshots[0].Name), 1, func() error { return nil })
	}
}

// vmRow is a cold start of the guest in both formats, with its working set and
// without, and after everything was downloaded.
func vmRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	g, err := b.realGuest(ctx)
	if err != nil {
		return nil, err
	}
	v1, errV1 := b.recordedGuest(ctx, "v1")
	pk, errPk := b.recordedGuest(ctx, "packed")
	if err := errors.Join(errV1, errPk); err != nil {
		return nil, err
	}
	cold := []*start{
		{name: v1WithoutSet, tag: v1.tag, link: startLink, flags: withoutSet},
		{name: packedWithoutSet, tag: pk.tag, link: startLink, flags: withoutSet},
		{name: v1WithSet, tag: v1.tag, link: startLink},
		{name: packedWithSet, tag: pk.tag, link: startLink},
	}
	limits := []float64{0, 0, 2, 1.4}
	measures := []func() (float64, error){
		fromLocal(ctx, g),
		func() (float64, error) { return b.download(ctx, v1.tag, startLink) },
	}
	for _, c := range cold {
		measures = append(measures, func() (float64, error) { return c.run(ctx, b, firstTurnOf(ctx, g)) })
	}
	times, err := b.rounds(ctx, measures...)
	if err != nil {
		return nil, err
	}
	local, downloaded := times[0], times[1]
	for i := range downloaded {
		downloaded[i] += local[i]
	}
	lines := []*line{timed(firstTurn+", "+downloadedFirst, downloaded, localFiles, local, no, 0)}
	for i, c := range cold {
		l := timed(firstTurn+", "+c.name, times[2+i], localFiles, local, goal(limits[i]), limits[i])
		l.Note = c.text()
		lines = append(lines, l)
	}
	best := cold[len(cold)-1]
	return append(lines,
		counted("fetched until then, "+packedWithSet, "MB", best.fetched, atMost, 45),
		memoryLine("the mount in the page cache then, "+packedWithSet, best.cached, pk.set),
		askedLine("until the mount is there, "+best.name+", which is looked for", best, cold[1], "not looked for")), nil
}

// vmSlowRow is a cold start of the guest on a slow link.
func vmSlowRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	g, err := b.realGuest(ctx)
	if err != nil {
		return nil, err
	}
	v1, err := b.guestTag(ctx, "v1", vm.Snapshots[0].Name)
	if err != nil {
		return nil, err
	}
	pk, err := b.recordedGuest(ctx, "packed")
	if err != nil {
		return nil, err
	}
	with := &start{tag: pk.tag, link: slowLink}
	packed := &start{tag: pk.tag, link: slowLink, flags: withoutSet}
	plain := &start{tag: v1, link: slowLink, flags: withoutSet}
	if err := b.starts(ctx, firstTurnOf(ctx, g), with, packed, plain); err != nil {
		return nil, err
	}
	l := sped(firstTurn+", cold, 20 MB/s in all, packed with its working set", with.seconds, "v1, no working set", plain.seconds, 4)
	l.Note = fmt.Sprintf("%s; v1 %s", with.text(), plain.text())
	other := timed(firstTurn+", cold, 20 MB/s in all, packed, no working set", packed.seconds, "v1, no working set", plain.seconds, no, 0)
	other.Note = packed.text()
	return []*line{l, other}, nil
}

// vmAgainRow is the second start of the guest on a node: from the cache,
// with nothing in memory.
func vmAgainRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	g, err := b.realGuest(ctx)
	if err != nil {
		return nil, err
	}
	pk, err := b.recordedGuest(ctx, "packed")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "again-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cache := filepath.Join(dir, "cache")
	second := func() (float64, error) {
		if err := dropPages(cache); err != nil {
			return 0, err
		}
		mnt, err := os.MkdirTemp(b.dir, "mount-")
		if err != nil {
			return 0, err
		}
		m, err := b.mountIn(ctx, mnt, cache, b.registry.addr, pk.tag)
		if err != nil {
			return 0, err
		}
		defer m.close()
		return resume(ctx, g, m.dir, 1, func() error { return nil })
	}
	if err := os.Mkdir(cache, 0o700); err != nil {
		return nil, err
	}
	if _, err := second(); err != nil { // the first
		return nil, err
	}
	ours, theirs, err := b.pair(ctx, second, func() (float64, error) {
		if err := dropPages(g.Dir(vm.Snapshots[0].Name)); err != nil {
			return 0, err
		}
		return fromLocal(ctx, g)()
	})
	if err != nil {
		return nil, err
	}
	return []*line{timed(firstTurn+", second start, from the cache, nothing in memory, packed with its working set", ours, "local files, nothing in memory", theirs, atMost, 1.15)}, nil
}

// vmChildRow starts the second snapshot with the working set that the first had
// when the second was pushed, and with its own.
func vmChildRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	g, err := b.realGuest(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := b.recordedGuest(ctx, "packed"); err != nil {
		return nil, err
	}
	child, err := b.guestTag(ctx, "packed", vm.Snapshots[1].Name)
	if err != nil {
		return nil, err
	}
	own := filepath.Join(b.dir, "own.set")
	if _, err := b.record(ctx, g, child, "-o", own); err != nil {
		return nil, err
	}
	inherited := &start{tag: child, link: startLink}
	recorded := &start{tag: child, link: startLink, flags: []string{"--working-set", own}}
	if err := b.starts(ctx, firstTurnOf(ctx, g), inherited, recorded); err != nil {
		return nil, err
	}
	l := timed(firstTurn+", a second snapshot with the first one's working set, packed", inherited.seconds, "with its own", recorded.seconds, atMost, 1.3)
	l.Note = fmt.Sprintf("%s; own %s", inherited.text(), recorded.text())
	return []*line{l}, nil
}

// vmRecordRow is the cost of a recording for the guest, with all data in the
// cache.
func vmRecordRow(ctx context.Context, b *bench) ([]*line, error) {
	b = b.keeping()
	g, err := b.realGuest(ctx)
	if err != nil {
		return nil, err
	}
	tag, err := b.guestTag(ctx, "packed", vm.Snapshots[0].Name)
	if err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	recording := func() (float64, error) {
		_, seconds, err := b.recordIn(ctx, g, cache, tag, "-o", filepath.Join(b.dir, "one.set"))
		return seconds, err
	}
	if _, err := recording(); err != nil { // brings the data
		return nil, err
	}
	ours, theirs, err := b.pair(ctx, recording, fromLocal(ctx, g))
	if err != nil {
		return nil, err
	}
	return []*line{timed(firstTurn+" while it is recorded, data local, packed", ours, localFiles, theirs, atMost, 3)}, nil
}

// recorded is a snapshot in the registry that has a working set there.
type recorded struct {
	tag string
	set float64 // MB of pages
}

// recordedGuest makes sure that the first snapshot is in the registry, in a
// format, with its working set.
func (b *bench) recordedGuest(ctx context.Context, format string) (r recorded, err error) {
	g, err := b.realGuest(ctx)
	if err != nil {
		return r, err
	}
	if r.tag, err = b.guestTag(ctx, format, vm.Snapshots[0].Name); err != nil {
		return r, err
	}
	if b.sets[r.tag] == 0 {
		if b.sets[r.tag], err = b.record(ctx, g, r.tag, "--push"); err != nil {
			return r, err
		}
	}
	r.set = b.sets[r.tag]
	return r, nil
}

// record records the guest's start from an artifact, and returns how many MB of
// pages it takes.
func (b *bench) record(ctx context.Context, g *vm.Guest, tag string, flags ...string) (set float64, err error) {
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(cache)
	set, _, err = b.recordIn(ctx, g, cache, tag, append(flags, "--runs", strconv.Itoa(recordRuns))...)
	return set, err
}

// recordIn does it with a cache, and returns the seconds of the last first turn
// too.
func (b *bench) recordIn(ctx context.Context, g *vm.Guest, cache, tag string, flags ...string) (set, seconds float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	result := filepath.Join(cache, "first-turn")
	args := append([]string{"record", "--json", "--cache-dir", cache}, flags...)
	args = append(args, b.registry.addr+"/"+repo+":"+tag, "--", self, resuming, g.Path(), strconv.Itoa(recordTurns), result, "{}")
	cmd := exec.CommandContext(ctx, b.epochfs, args...)
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, fmt.Errorf("epochfs record: %w: %s", err, strings.TrimSpace(words.String()))
	}
	var of struct {
		Size int64 `json:"size"`
	}
	if err := json.Unmarshal(out, &of); err != nil {
		return 0, 0, err
	}
	text, err := os.ReadFile(result)
	if err != nil {
		return 0, 0, err
	}
	err = json.Unmarshal(text, &seconds)
	return float64(of.Size) / 1e6, seconds, err
}
