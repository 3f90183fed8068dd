package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Of a blob that can be checked only as a whole, bytes are read before all of
// it has come, and may be wrong. A lying campaign has a registry answer ranges
// of such blobs with wrong bits, which readers of two mounts on one cache get,
// while processes are killed. Then the registry ignores ranges, all of the
// blob passes, and no wrong byte may be left, neither for readers that have the
// file open or mapped, nor for those that open it anew.
const (
	liarSize  = 48 << 20
	liarReads = 200
	// liarEnd is how long it may take until all is right: the blob has to
	// come, and processes that were killed have to be followed by others.
	liarEnd = 90 * time.Second
)

// lies runs a lying campaign.
func lies(ctx context.Context, cfg config) (*report, error) {
	reg, err := startSick(cfg.seed, false)
	if err != nil {
		return nil, err
	}
	defer func() { reg.close() }()
	rng := rand.New(rand.NewPCG(cfg.seed, 4))
	of, err := reg.pushAs(ctx, rng, liarSize, 1, unchecked)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	r := newReport()
	var liars []*liar
	defer func() {
		for _, l := range liars {
			l.end(r)
		}
	}()
	for i := range 2 {
		m := &mount{bin: cfg.bin, cache: filepath.Join(cfg.dir, "cache"), size: 1 << 30, repo: reg.host + "/soak/vm",
			dir: filepath.Join(cfg.dir, fmt.Sprint("mnt", i)), of: of[0]}
		l, err := startLiar(m)
		if err != nil {
			return nil, err
		}
		liars = append(liars, l)
	}
	reg.lies.Store(600)
	if err := lie(cfg, liars, rng, r); err != nil {
		faults, blobs := reg.told()
		return nil, fmt.Errorf("%w: %d requests, %v", err, blobs, faults)
	}
	reg.lies.Store(0)
	reg.wholes.Store(true)
	for n, l := range liars {
		if err := l.right(ctx, rng, cfg.kills > 0 && n == 0, r); err != nil {
			return nil, err
		}
	}
	r.faults, r.blobs = reg.told()
	r.took = time.Since(began)
	return r, nil
}

// lie reads while the registry lies, and kills processes.
func lie(cfg config, liars []*liar, rng *rand.Rand, r *report) error {
	for i := range liarReads {
		l := liars[rng.IntN(len(liars))]
		if err := l.look(rng, r); err != nil {
			return err
		}
		if cfg.kills > 0 && i%20 == 19 {
			if err := l.kill(rng); err != nil {
				return err
			}
		}
	}
	if r.lies == 0 {
		return fmt.Errorf("no wrong byte was read, in %d reads", r.reads)
	}
	return nil
}

// liar is a mount with readers that have its file open and mapped all along.
type liar struct {
	*mount
	file     *os.File
	touching *toucher
}

func startLiar(m *mount) (*liar, error) {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	l := &liar{mount: m}
	err := m.up()
	if err == nil {
		l.touching, err = startToucher()
	}
	if err == nil {
		l.file, err = os.Open(filepath.Join(m.dir, fileName))
	}
	return l, err
}

func (l *liar) end(r *report) {
	if l.file != nil {
		_ = l.file.Close()
	}
	if l.touching != nil {
		_ = l.touching.close()
	}
	r.kills, r.spares = r.kills+l.kills.Load(), r.spares+l.spares.Load()
	_ = l.down()
	_ = exec.Command("umount", "-l", l.dir).Run() // where down did not get to it
	if r.wrong > 0 {
		log := l.log.Bytes()
		fmt.Fprintf(os.Stderr, "%s: ... %s\n", l.dir, log[max(0, len(log)-4000):])
	}
}

// look reads somewhere in the first half: the blob does not get complete. What
// comes may be wrong, and stays in the kernel's pages.
func (l *liar) look(rng *rand.Rand, r *report) error {
	off, n := rng.IntN(len(l.of.flat)/2), 1+rng.IntN(64<<10)
	off = off / 4096 * 4096
	got, err := l.read(rng.IntN(2), off, n)
	if err != nil {
		return err
	}
	r.reads, r.bytes = r.reads+1, r.bytes+int64(len(got))
	if !bytes.Equal(got, l.of.flat[off:off+n]) {
		r.lies++
	}
	return nil
}

// read reads in one of three ways: through an open file, a mapping, or a new
// open.
func (l *liar) read(way, off, n int) ([]byte, error) {
	name := filepath.Join(l.dir, fileName)
	switch way {
	case 0:
		return pread(l.file, nil, off, n)
	case 1:
		return l.touching.read(name, off, n)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return pread(f, nil, off, n)
}

// right reads the file until it is right in every way, and counts what is
// wrong in the end.
func (l *liar) right(ctx context.Context, rng *rand.Rand, kill bool, r *report) error {
	const step = 1 << 20
	var left string
	for deadline := time.Now().Add(liarEnd); time.Now().Before(deadline); {
		left = ""
		for off := 0; off < len(l.of.flat); off += step { // also after a wrong byte: all has to come
			n := min(step, len(l.of.flat)-off)
			for way := range 3 {
				got, err := l.read(way, off, n)
				if err != nil {
					return err
				}
				r.reads, r.bytes = r.reads+1, r.bytes+int64(len(got))
				if !bytes.Equal(got, l.of.flat[off:off+n]) {
					left = fmt.Sprintf("%s, way %d: wrong bytes in [%d,%d)", l.dir, way, off, off+n)
				}
			}
			if kill && off/step == 8 {
				kill = false // while the blob passes
				if err := l.kill(rng); err != nil {
					return err
				}
			}
		}
		if left == "" {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.wrong++
	r.last = left + " in the end"
	return nil
}
