package main

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// pushRows measure uploads; they are not among those of the mount.
var pushRows = []row{
	{"push-v1", pushV1Row},
	{"push-file", pushFileRow},
	{"push-v2", pushV2Row},
	{"push-again", pushAgainRow},
	{"push-floor", func(ctx context.Context, b *bench) ([]*line, error) { return pushFloorRow(ctx, b.fewer()) }},
}

const spooled = "spool to a file, hash, then PUT, one file after another"

// pushedEnvelope describes the full memory and disk, as cocoon does, not
// only the part in use.
const pushedEnvelope = `{"version":1,"config":{"id":"BENCHMARK","name":"bench","cpu":4,"memory":2147483648,"storage":4294967296}}` + "\n"

// pushedSets are the files that are uploaded.
var pushedSets = []*dataset{disk, memory}

// exportTar makes the tar that cocoon would export, and a program that
// stands for cocoon: it writes the tar. Changed pages come from another
// seed.
func (b *bench) exportTar(name string, changed map[int64]bool) (file string, err error) {
	file = filepath.Join(b.dir, name+".tar")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buf)
	small := strings.Repeat(`{"vm":"bench"}`+"\n", 1000)
	for _, e := range [][2]string{{"snapshot.json", pushedEnvelope}, {"config.json", small[:2000]}, {"state.json", small}} {
		if err := w.WriteHeader(&tar.Header{Name: e[0], Mode: 0o644, Size: int64(len(e[1]))}); err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, e[1]); err != nil {
			return "", err
		}
	}
	for _, d := range pushedSets {
		if err := writeDataset(w, d, changed); err != nil {
			return "", err
		}
	}
	if err := errors.Join(w.Close(), buf.Flush(), f.Close()); err != nil {
		return "", err
	}
	return file, nil
}

// writeDataset writes a file's entry. The numbers of changed pages are
// payload pages.
func writeDataset(w *tar.Writer, d *dataset, changed map[int64]bool) error {
	err := w.WriteHeader(&tar.Header{Name: d.name, Mode: 0o600, Size: d.m.DataSize(), PAXRecords: map[string]string{
		"COCOON.sparse.map": d.m.Text(), "COCOON.sparse.size": strconv.FormatInt(d.m.Size(), 10),
	}})
	if err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	for off := int64(0); off < d.m.DataSize(); off += int64(len(p)) {
		p = p[:min(int64(len(p)), d.m.DataSize()-off)]
		d.fill(p, off)
		for i := int64(0); i < int64(len(p)); i += pageSize {
			if n := (off + i) / pageSize; changed[n] {
				fillPage(p[i:i+pageSize], mix(d.seed<<50+uint64(n)))
			}
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// dirty is a share of a payload's pages, in runs of a few pages up to
// some MiB, as a guest writes them.
func dirty(pages int64, share float64, seed uint64) map[int64]bool {
	rng := rand.New(rand.NewPCG(seed, 3))
	set := map[int64]bool{}
	for want := int(float64(pages) * share); len(set) < want; {
		at, run := rng.Int64N(pages), int64(1)<<rng.IntN(11)
		for i := at; i < min(at+run, pages) && len(set) < want; i++ {
			set[i] = true
		}
	}
	return set
}

// standIn is a program that writes the tar when it is asked for an export.
func (b *bench) standIn(file string) (string, error) {
	script := file + ".sh"
	return script, os.WriteFile(script, []byte("#!/bin/sh\n[ \"$2\" = export ] && exec cat "+file+"\n"), 0o700)
}

var repositories int

// repository is a new one: nothing is there yet.
func (b *bench) repository() string {
	repositories++
	return fmt.Sprintf("push/%d", repositories)
}

// pushResult is the output of a push, and its cost.
type pushResult struct {
	seconds float64
	rss     float64 // MB
	Sent    int64   `json:"sent"`
	There   int64   `json:"there"`
	Size    int64   `json:"size"`
}

// push uploads the tar with epochfs, as cocoon's export.
func (b *bench) push(ctx context.Context, file, repository string, args ...string) (r pushResult, err error) {
	if err := readAll(file); err != nil {
		return r, err
	}
	script, err := b.standIn(file)
	if err != nil {
		return r, err
	}
	args = append([]string{"push", "--json", "--quiet"}, args...)
	cmd := exec.CommandContext(ctx, b.epochfs, append(args, "vm", b.registry.addr+"/"+repository)...)
	cmd.Env = append(os.Environ(), "EPOCH_COCOON_BINARY="+script)
	var out, words strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &words
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	most := watchMemory(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return r, fmt.Errorf("push: %w: %s", err, words.String())
	}
	r.seconds = time.Since(began).Seconds()
	r.rss = most()
	return r, json.Unmarshal([]byte(out.String()), &r)
}

// pushByReference uploads an export the plain way.
func (b *bench) pushByReference(ctx context.Context, file string) (float64, error) {
	if err := readAll(file); err != nil {
		return 0, err
	}
	return b.plainly(ctx, spooling, b.registry.addr, b.repository(), file, b.dir)
}

// pushForm is a way to push.
type pushForm struct {
	work string
	args []string
}

// pushRow compares ways to push with the reference.
func (b *bench) pushRow(ctx context.Context, limit float64, forms ...pushForm) ([]*line, error) {
	file, err := b.exportTar("first", nil)
	if err != nil {
		return nil, err
	}
	// The first push alone makes the registry keep what it gets.
	if _, err := b.pushByReference(ctx, file); err != nil {
		return nil, err
	}
	rss := make([]sample, len(forms))
	var runs []func() (float64, error)
	for i, f := range forms {
		if _, err := b.push(ctx, file, b.repository(), f.args...); err != nil {
			return nil, err
		}
		runs = append(runs, func() (float64, error) {
			r, err := b.push(ctx, file, b.repository(), f.args...)
			rss[i] = append(rss[i], r.rss)
			return r.seconds, err
		})
	}
	times, err := b.rounds(ctx, append(runs, func() (float64, error) { return b.pushByReference(ctx, file) })...)
	if err != nil {
		return nil, err
	}
	var lines []*line
	for i, f := range forms {
		lines = append(lines, timed(f.work, times[i], spooled, times[len(forms)], atMost, limit),
			counted(f.work+", resident memory", "MB", rss[i], atMost, 256))
	}
	return lines, nil
}

func pushV1Row(ctx context.Context, b *bench) ([]*line, error) {
	return b.pushRow(ctx, 0.6, pushForm{work: "push v1 out of cocoon"})
}

func pushFileRow(ctx context.Context, b *bench) ([]*line, error) {
	file, err := b.exportTar("first", nil)
	if err != nil {
		return nil, err
	}
	return b.pushRow(ctx, 0.6, pushForm{"push v1 of a tar file", []string{"--input", file}})
}

func pushV2Row(ctx context.Context, b *bench) ([]*line, error) {
	return b.pushRow(ctx, 0.6,
		pushForm{"push v2, zstd 3, default chunks", []string{"--zstd", "3"}},
		pushForm{"push v2, zstd 1, default chunks", []string{"--zstd", "1"}})
}

// pushAgainRow pushes a snapshot, and then others to the same repository
// in each of which other 2 % of the pages have changed. How many chunks
// those are in hangs on where they lie.
func pushAgainRow(ctx context.Context, b *bench) ([]*line, error) {
	const changes = 9
	first, err := b.exportTar("first", nil)
	if err != nil {
		return nil, err
	}
	repository := b.repository()
	r, err := b.push(ctx, first, repository, "--zstd", "3")
	if err != nil {
		return nil, err
	}
	whole := float64(r.Sent) / 1e6
	var ours, theirs sample
	pages := (memory.m.DataSize() + pageSize - 1) / pageSize
	for i := range uint64(changes) {
		second, err := b.exportTar("second", dirty(pages, 0.02, i))
		if err != nil {
			return nil, err
		}
		if r, err = b.push(ctx, second, repository, "--zstd", "3"); err != nil {
			return nil, err
		}
		ours, theirs = append(ours, float64(r.Sent)/1e6), append(theirs, whole)
		if err := os.Remove(second); err != nil {
			return nil, err
		}
	}
	l := timed("second push, 2 % of the pages changed in runs of up to 4 MiB, nine ways", ours, "the first push", theirs, atMost, 0.15)
	l.Unit = "MB"
	return []*line{l}, nil
}
