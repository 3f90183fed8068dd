// Command soak reads through real mounts of a registry that fails all the
// time, and compares every byte: requests that break, bytes that are
// wrong, the registry going away, processes killed, caches that are too
// small or empty.
// It ends with a count of everything, and with exit code 1 when a read
// failed or a byte was wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// config says what a campaign is like.
type config struct {
	bin    string
	dir    string        // for cache and mount points
	length time.Duration // at most
	faults int           // enough of them end it sooner; 0: never
	seed   uint64
	flips  bool // wrong bytes; only of artifacts whose every piece has a digest
	kills  bool // of serving processes
	away   bool // the registry goes now and then
}

func main() {
	cfg := config{}
	flag.StringVar(&cfg.bin, "epochfs", "bin/epochfs", "the binary to try")
	flag.DurationVar(&cfg.length, "for", 30*time.Minute, "how long")
	flag.Uint64Var(&cfg.seed, "seed", uint64(time.Now().UnixNano()), "of everything random")
	flag.Parse()
	dir, err := os.MkdirTemp("", "epochfs-soak-")
	if err == nil {
		defer os.RemoveAll(dir)
		cfg.dir, cfg.flips, cfg.kills, cfg.away = dir, true, true, true
		err = soak(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

// soak runs campaigns one after the other: each has other files, and a
// cache that is empty again.
func soak(cfg config) error {
	rng := rand.New(rand.NewPCG(cfg.seed, 2))
	fmt.Println("seed", cfg.seed)
	for end, round := time.Now().Add(cfg.length), 0; time.Now().Before(end); round++ {
		one := cfg
		one.length = min(time.Minute, time.Until(end))
		one.seed = rng.Uint64()
		one.flips = round%2 == 0
		one.dir = filepath.Join(cfg.dir, fmt.Sprint(round))
		rep, err := campaign(context.Background(), one)
		if err != nil {
			return err
		}
		fmt.Println(rep)
		if err := rep.verdict(); err != nil {
			return err
		}
		if err := os.RemoveAll(one.dir); err != nil {
			return err
		}
	}
	return nil
}

// report is what a campaign saw.
type report struct {
	faults                            map[string]int
	blobs                             int
	kills                             int64
	reads, bytes, failed, wrong, torn int64
	took                              time.Duration
	last                              string
}

func (r *report) String() string {
	s := fmt.Sprintf("%.0f s: %d reads of %d MB, %d failed, %d wrong, %d torn by %d kills; %d requests for blobs; faults:",
		r.took.Seconds(), r.reads, r.bytes/1e6, r.failed, r.wrong, r.torn, r.kills, r.blobs)
	var kinds []string
	for k := range r.faults {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		s += fmt.Sprintf(" %s %d,", k, r.faults[k])
	}
	return s[:len(s)-1]
}

func (r *report) verdict() error {
	switch {
	case r.wrong > 0 || r.failed > 0:
		return fmt.Errorf("%d reads failed and %d were wrong; the last: %s", r.failed, r.wrong, r.last)
	case r.reads == 0:
		return errors.New("nothing was read")
	}
	return nil
}

// Sizes of a campaign: a cache holds less than what is read.
const (
	artifacts = 4
	fileSize  = 96 << 20
	cacheSize = "16MiB"
	perMount  = 4
)

// campaign mounts all artifacts at a registry that fails, reads, and
// counts.
func campaign(ctx context.Context, cfg config) (*report, error) {
	reg, err := startSick(cfg.seed, cfg.flips)
	if err != nil {
		return nil, err
	}
	defer func() { reg.close() }()
	rng := rand.New(rand.NewPCG(cfg.seed, 3))
	samples, err := reg.push(ctx, rng, fileSize, artifacts)
	if err != nil {
		return nil, err
	}
	var mounts []*mount
	defer func() {
		for _, m := range mounts {
			_ = exec.Command("umount", "-l", m.dir).Run() // where down did not get to it
		}
	}()
	for _, s := range samples {
		m := &mount{bin: cfg.bin, cache: filepath.Join(cfg.dir, "cache"+s.tag), size: cacheSize,
			ref: reg.host + "/soak/vm:" + s.tag, dir: filepath.Join(cfg.dir, "mnt"+s.tag)}
		if err := os.MkdirAll(m.dir, 0o700); err != nil {
			return nil, err
		}
		if err := m.up(); err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	reg.chance.Store(600)

	began := time.Now()
	reading, stop := context.WithTimeout(ctx, cfg.length)
	defer stop()
	var t tally
	var wg sync.WaitGroup
	wg.Add(perMount * len(mounts))
	for i, m := range mounts {
		m.readers(reading, rng, samples[i].flat, perMount, &t, wg.Done)
	}
	err = harass(reading, cfg, reg, mounts, rng, stop)
	stop()
	reg.chance.Store(0)
	wg.Wait()
	r := &report{faults: reg.counts, blobs: reg.blobs, took: time.Since(began)}
	r.reads, r.bytes, r.failed, r.wrong, r.torn = t.reads.Load(), t.bytes.Load(), t.failed.Load(), t.wrong.Load(), t.torn.Load()
	r.last, _ = t.last.Load().(string)
	for _, m := range mounts {
		r.kills += m.kills.Load()
		err = errors.Join(err, m.down())
		if log := m.log.Bytes(); r.verdict() != nil {
			fmt.Fprintf(os.Stderr, "%s: ... %s\n", m.ref, log[max(0, len(log)-2000):])
		}
	}
	return r, err
}

// harass kills and takes away until the campaign is over.
func harass(ctx context.Context, cfg config, reg *sick, mounts []*mount, rng *rand.Rand, stop func()) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch n := rng.IntN(40); {
		case cfg.faults > 0 && reg.injected() >= cfg.faults:
			stop()
		case n < 1 && cfg.away:
			if err := reg.away(time.Duration(rng.IntN(1500)) * time.Millisecond); err != nil {
				return err
			}
		case n < 9 && cfg.kills:
			if err := mounts[rng.IntN(len(mounts))].kill(); err != nil {
				return err
			}
		case n < 20:
			if err := mounts[rng.IntN(len(mounts))].cold(); err != nil {
				return err
			}
		}
	}
}
