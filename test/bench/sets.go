package main

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/traces"
)

// touched is the guest of the traces, in the registry in two formats.
type touched struct {
	*traces.Touches
	m          *sparse.Map
	v1, packed string // tags

	// Files with working sets: what it touched, half of that, and as many
	// pages that it may not have touched.
	set, half, other string
	setMB            float64
}

// touched makes sure that the guest is in the registry, and makes its sets.
func (b *bench) touched(ctx context.Context) (t *touched, err error) {
	t = &touched{}
	if t.Touches, err = traces.ReadTouches(); err != nil {
		return nil, err
	}
	if t.m, err = t.Map(t.Page, 0); err != nil {
		return nil, err
	}
	if t.v1, err = b.pushTouched(ctx, t, "v1"); err != nil {
		return nil, err
	}
	if t.packed, err = b.pushTouched(ctx, t, "packed"); err != nil {
		return nil, err
	}
	var all, half, other [][2]int64
	rng := rand.New(rand.NewPCG(1, 4))
	for i, x := range t.Touches.Touches {
		if x[0] > touchedFor {
			continue
		}
		all = append(all, x)
		if i%2 == 0 {
			half = append(half, x)
		}
		for run := range t.m.Payload(rng.Int64N(t.m.DataSize()/pageSize)*pageSize, pageSize) {
			other = append(other, [2]int64{x[0], run.Offset / pageSize})
		}
	}
	for _, s := range []struct {
		file    *string
		name    string
		touches [][2]int64
	}{{&t.set, "touches.set", all}, {&t.half, "half.set", half}, {&t.other, "other.set", other}} {
		*s.file = filepath.Join(b.dir, s.name)
		if err := writeSet(*s.file, memoryTitle, t.m.Size(), s.touches); err != nil {
			return nil, err
		}
	}
	t.setMB, err = setSize(t.set)
	return t, err
}

// pushTouched makes sure that the memory is in the registry, in a format.
func (b *bench) pushTouched(ctx context.Context, t *touched, format string) (tag string, err error) {
	tag = "touches-" + format
	if b.pushed[tag] {
		return tag, nil
	}
	file := filepath.Join(b.dir, "touches.tar")
	g := &guestMemory{version: make([]uint32, t.Size/pageSize)}
	if err := writeExport(file, memoryTitle, t.m, g.payload(t.m)); err != nil {
		return "", err
	}
	defer os.Remove(file)
	if _, err := b.push(ctx, file, repo+":"+tag, pushArgs(format)...); err != nil {
		return "", err
	}
	b.pushed[tag] = true
	return tag, nil
}

// ways are the starts that are compared, without working set and with it.
func (t *touched) ways() []*start {
	with := []string{"--working-set", t.set}
	return []*start{
		{name: "v1, no working set", tag: t.v1, link: startLink, flags: withoutSet},
		{name: "packed, no working set", tag: t.packed, link: startLink, flags: withoutSet},
		{name: "v1 with its working set", tag: t.v1, link: startLink, flags: with},
		{name: "packed with its working set", tag: t.packed, link: startLink, flags: with},
	}
}

// writeSet writes a working set of one file's touches: milliseconds, page.
func writeSet(path, title string, size int64, touches [][2]int64) error {
	all := make([]workingset.Touch, len(touches))
	for i, x := range touches {
		all[i] = workingset.Touch{Page: x[1], After: time.Duration(x[0]) * time.Millisecond}
	}
	data, err := workingset.Encode(workingset.FromTouches([]workingset.File{{Title: title, Size: size}}, all))
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// setSize is how many pages a file with a working set has, in MB.
func setSize(path string) (float64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s, err := workingset.Decode(data)
	if err != nil {
		return 0, err
	}
	return float64(s.Bytes()) / 1e6, nil
}
