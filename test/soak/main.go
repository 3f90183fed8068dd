// Command soak reads through real mounts of a registry that fails all the
// time, and compares every byte: requests that break, bytes that are
// wrong, the registry going away, processes killed, caches that are too
// small, empty, or shared by more artifacts than they hold.
// It ends with a count of everything, and with exit code 1 when a read
// failed or a byte was wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// config configures a campaign.
type config struct {
	bin    string
	other  string        // another build, which takes mounts over; may be empty
	dir    string        // for cache and mount points
	length time.Duration // at most
	faults int           // so many, one of each kind, and kills end it sooner; 0: never
	seed   uint64
	flips  bool // wrong bytes; only of artifacts whose every piece has a digest
	kills  int  // in how many of twenty moments a process of a mount is killed; the least for an end by faults
	away   bool // the registry goes now and then
	shared bool // one cache for all mounts, which go from artifact to artifact: files are evicted
}

func main() {
	if os.Getenv(touchEnv) != "" {
		if err := touch(); err != nil {
			fmt.Fprintln(os.Stderr, "soak: touch:", err)
			os.Exit(1)
		}
		return
	}
	cfg := config{}
	flag.StringVar(&cfg.bin, "epochfs", "bin/epochfs", "the binary to try")
	flag.StringVar(&cfg.other, "other", "", "another build of it, to take mounts over now and then")
	flag.DurationVar(&cfg.length, "for", 30*time.Minute, "how long")
	flag.Uint64Var(&cfg.seed, "seed", uint64(time.Now().UnixNano()), "of everything random")
	flag.Parse()
	dir, err := os.MkdirTemp("", "epochfs-soak-")
	if err == nil {
		defer os.RemoveAll(dir)
		cfg.dir, cfg.flips, cfg.kills, cfg.away = dir, true, 9, true
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = soak(ctx, cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

// soak runs campaigns one after the other: each has other files, and a
// cache that is empty again.
func soak(ctx context.Context, cfg config) error {
	rng := rand.New(rand.NewPCG(cfg.seed, 2))
	fmt.Println("seed", cfg.seed)
	sum := newReport()
	defer func() { fmt.Println("all:", sum) }()
	for end, round := time.Now().Add(cfg.length), 0; (round == 0 || time.Until(end) > leastRound) && ctx.Err() == nil; round++ {
		one := cfg
		one.length = min(time.Minute, time.Until(end))
		one.seed = rng.Uint64()
		one.flips = round%2 == 0
		one.shared = round%4 < 2
		one.dir = filepath.Join(cfg.dir, fmt.Sprint(round))
		for _, run := range []func(context.Context, config) (*report, error){campaign, lies} {
			rep, err := run(ctx, one)
			if err != nil {
				return err
			}
			fmt.Println(rep)
			sum.add(rep)
			if err := rep.verdict(); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(one.dir); err != nil {
			return err
		}
	}
	return nil
}

// report is the result of a campaign.
type report struct {
	faults                      map[string]int
	blobs                       int
	kills, spares               int64 // of processes that served, and of those that would
	restarts                    int64 // from build to build
	evicted, over               int64
	reads, bytes, failed, wrong int64
	lies                        int64         // reads of bytes that could not be checked yet, and were wrong
	took, longest               time.Duration // of all, and of one read
	last                        string
	killing                     bool // there had to be kills
}

func newReport() *report { return &report{faults: map[string]int{}} }

func (r *report) add(o *report) {
	for k, n := range o.faults {
		r.faults[k] += n
	}
	r.blobs += o.blobs
	r.kills, r.spares = r.kills+o.kills, r.spares+o.spares
	r.restarts += o.restarts
	r.evicted, r.over = r.evicted+o.evicted, r.over+o.over
	r.reads, r.bytes, r.failed = r.reads+o.reads, r.bytes+o.bytes, r.failed+o.failed
	r.lies += o.lies
	r.wrong, r.took = r.wrong+o.wrong, r.took+o.took
	r.longest = max(r.longest, o.longest)
}

func (r *report) String() string {
	total := 0
	for _, n := range r.faults {
		total += n
	}
	s := fmt.Sprintf("%.0f s: %d reads of %d MB, the longest %.1f s, %d failed, %d wrong (%d before they could be checked), with %d kills, %d of spares and %d restarts; %d files evicted, cache too large %d times; %d requests for blobs, %d faults:",
		r.took.Seconds(), r.reads, r.bytes/1e6, r.longest.Seconds(), r.failed, r.wrong, r.lies, r.kills, r.spares, r.restarts, r.evicted, r.over, r.blobs, total)
	for _, k := range slices.Sorted(maps.Keys(r.faults)) {
		s += fmt.Sprintf(" %s %d,", k, r.faults[k])
	}
	return s[:len(s)-1]
}

func (r *report) verdict() error {
	switch {
	case r.wrong > 0 || r.failed > 0:
		return fmt.Errorf("%d reads failed and %d were wrong; the last: %s", r.failed, r.wrong, r.last)
	case r.over > 0:
		return fmt.Errorf("the cache was larger than it may be, %d times", r.over)
	case r.reads == 0:
		return errors.New("nothing was read")
	case r.killing && r.kills == 0:
		return errors.New("no process was killed")
	}
	return nil
}

// leastRound is time enough for something of everything.
const leastRound = 20 * time.Second

// Sizes of a campaign. A cache of its own holds less than the one file
// that is read; a shared one a few files of many.
const (
	artifacts   = 4
	fileSize    = 96 << 20
	cacheSize   = 16 << 20
	manyFiles   = 8
	manySize    = 64 << 20
	sharedCache = 112 << 20
	perMount    = 4
)

// campaign mounts artifacts of a registry that fails, reads, and counts.
func campaign(ctx context.Context, cfg config) (*report, error) {
	reg, err := startSick(cfg.seed, cfg.flips)
	if err != nil {
		return nil, err
	}
	defer func() { reg.close() }()
	rng := rand.New(rand.NewPCG(cfg.seed, 3))
	size, n := int64(fileSize), artifacts
	if cfg.shared {
		size, n = manySize, manyFiles
	}
	samples, err := reg.push(ctx, rng, size, n)
	if err != nil {
		return nil, err
	}
	var mounts []*mount
	defer func() {
		for _, m := range mounts {
			_ = exec.Command("umount", "-l", m.dir).Run() // where down did not get to it
		}
	}()
	for i := range artifacts {
		m := &mount{bin: cfg.bin, cache: filepath.Join(cfg.dir, fmt.Sprint("cache", i)), size: cacheSize,
			repo: reg.host + "/soak/vm", dir: filepath.Join(cfg.dir, fmt.Sprint("mnt", i)), of: samples[i]}
		if cfg.shared {
			m.cache, m.size = filepath.Join(cfg.dir, "cache"), sharedCache
		}
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
	for _, m := range mounts {
		wg.Add(perMount)
		if err := m.readers(reading, rng, perMount, &t, wg.Done); err != nil {
			return nil, err
		}
	}
	look := watch{dir: mounts[0].cache, limit: sharedCache}
	if cfg.shared {
		wg.Go(func() { look.run(reading) })
	}
	err = harass(reading, cfg, reg, mounts, samples, rng, stop)
	stop()
	reg.chance.Store(0)
	wg.Wait()
	r := &report{took: time.Since(began), evicted: look.evicted, over: look.over, killing: cfg.kills > 0}
	r.faults, r.blobs = reg.told()
	r.reads, r.bytes, r.failed, r.wrong = t.reads.Load(), t.bytes.Load(), t.failed.Load(), t.wrong.Load()
	r.longest = time.Duration(t.longest.Load())
	r.last, _ = t.last.Load().(string)
	for _, m := range mounts {
		r.kills, r.spares = r.kills+m.kills.Load(), r.spares+m.spares.Load()
		r.restarts += m.restarts
		err = errors.Join(err, m.down())
		if log := m.log.Bytes(); err != nil || r.verdict() != nil {
			fmt.Fprintf(os.Stderr, "%s: ... %s\n", m.dir, log[max(0, len(log)-2000):])
		}
	}
	return r, err
}

// harass kills and takes away until the campaign is over: in each mount by
// itself, for one may have to wait until its readers are done.
func harass(ctx context.Context, cfg config, reg *sick, mounts []*mount, samples []sample, rng *rand.Rand, stop func()) error {
	var work errgroup.Group
	for _, m := range mounts {
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		work.Go(func() error {
			err := m.harass(ctx, cfg, reg, samples, own)
			if err != nil {
				stop()
			}
			return err
		})
	}
	work.Go(func() error {
		for tick(ctx) {
			switch n := rng.IntN(40); {
			case cfg.faults > 0 && reg.injected(cfg.faults) && killed(mounts) >= int64(cfg.kills):
				stop()
			case n < 1 && cfg.away:
				if err := reg.away(time.Duration(rng.IntN(1500)) * time.Millisecond); err != nil {
					stop()
					return err
				}
			}
		}
		return nil
	})
	return work.Wait()
}

func killed(mounts []*mount) (n int64) {
	for _, m := range mounts {
		n += m.kills.Load()
	}
	return n
}

func (m *mount) harass(ctx context.Context, cfg config, reg *sick, samples []sample, rng *rand.Rand) (err error) {
	for err == nil && tick(ctx) {
		switch n := rng.IntN(20); {
		case n < cfg.kills:
			err = m.kill(rng)
		case n < cfg.kills+3 && cfg.shared:
			err = m.move(reg, samples[rng.IntN(len(samples))])
		case n < cfg.kills+2:
			err = m.cold(reg)
		case n == 19 && cfg.other != "":
			err = m.restart([]string{cfg.bin, cfg.other}[rng.IntN(2)])
		}
	}
	return err
}

// tick waits for a moment and reports whether ctx is still alive.
func tick(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)):
		return true
	}
}
