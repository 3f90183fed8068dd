// Command bench measures epochfs against the programs that one would use
// without it, on links made slow as real ones are, and prints a table. It
// brings its own registry, data and proxy; see docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/packed"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	epochfs string
	rows    string
	runs    int
	json    string
	plot    string
	dir     string
	guest   string
}

func run() error {
	if program := calledAs(os.Args[1:]); program != nil {
		return program(context.Background())
	}
	var opts options
	flag.StringVar(&opts.epochfs, "epochfs", "bin/epochfs", "the binary to measure")
	flag.StringVar(&opts.rows, "rows", "", "rows to run, with commas between; all without it")
	flag.IntVar(&opts.runs, "runs", 3, "how often each is measured")
	flag.StringVar(&opts.json, "json", "", "write the figures to this file too")
	flag.StringVar(&opts.plot, "plot", "", "draw them into this SVG file too")
	flag.StringVar(&opts.dir, "dir", os.TempDir(), "where a directory for all data is made, on a file system like the cache's")
	flag.StringVar(&opts.guest, "guest", "", "directory of a real guest: the rows vm-* make what it does not have; for those of the packed format it has exports, m1.tar and m2.tar")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rows, err := selectRows(opts.rows)
	if err != nil {
		return err
	}
	r, err := measure(ctx, opts, rows)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	if opts.json != "" {
		err = r.write(opts.json)
	}
	if opts.plot != "" {
		err = errors.Join(err, r.draw(opts.plot))
	}
	return err
}

func selectRows(names string) ([]row, error) {
	if names == "" {
		return allRows, nil
	}
	var rows []row
	allRows := slices.Concat(allRows, moreRows, pushRows, materializeRows, takeoverRows, insideRows, packedRows, startRows, vmRows, fleetRows, copiesRows)
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(allRows, func(r row) bool { return r.name == name })
		if i < 0 {
			var known []string
			for _, r := range allRows {
				known = append(known, r.name)
			}
			return nil, fmt.Errorf("there is no row %q, only %s", name, strings.Join(known, ", "))
		}
		rows = append(rows, allRows[i])
	}
	return rows, nil
}

// bench is what all rows share.
type bench struct {
	epochfs  string // the binary
	dir      string // for everything that is made
	runs     int
	registry *registry
	writer   *writer
	pushed   map[string]bool    // tags
	warm     bool               // the page cache cannot be dropped here
	held     held               // memory that each run finds free; none in most rows
	keep     bool               // the page cache is left as it is between runs
	guest    string             // directory of a real guest; "" for the traces, and for a directory among the user's caches
	sets     map[string]float64 // MB of the working sets that were recorded and pushed, by tag
	made     *family            // nil until it is made

	section      []packed.Granule // those of large files; nil until they are made
	sectionPacks []packed.Pack
}

// row is one measurement; it may come to several lines of the table.
type row struct {
	name string
	run  func(ctx context.Context, b *bench) ([]*line, error)
}

// measure runs the rows, one after another.
func measure(ctx context.Context, opts options, rows []row) (r *report, err error) {
	began := time.Now()
	b := &bench{runs: max(1, opts.runs), pushed: map[string]bool{}, sets: map[string]float64{}, guest: opts.guest}
	if b.epochfs, err = filepath.Abs(opts.epochfs); err != nil {
		return nil, err
	}
	if err := unix.Access(b.epochfs, unix.X_OK); err != nil {
		return nil, fmt.Errorf("%s: %w: make build", b.epochfs, err)
	}
	if b.dir, err = os.MkdirTemp(opts.dir, "epochfs-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(b.dir)
	if b.registry, err = startRegistry(ctx, b.dir); err != nil {
		return nil, err
	}
	defer b.registry.stop()
	b.writer = &writer{addr: b.registry.addr, blobs: map[string]madeBlob{}, used: map[string]bool{}}

	r = &report{Version: 1, Date: began.UTC().Truncate(time.Second), Machine: thisMachine(b.dir), Commit: commit(), Runs: b.runs}
	large = hold(r.Machine.MemoryMiB)
	for _, row := range rows {
		t := time.Now()
		clear(b.writer.used)
		fmt.Fprintf(os.Stderr, "%-12s ", row.name)
		lines, err := row.run(ctx, b)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			r.Failed = append(r.Failed, row.name+": "+err.Error())
		}
		for _, l := range lines {
			l.Row = row.name
			r.Lines = append(r.Lines, l)
		}
		fmt.Fprintf(os.Stderr, "%.1f s\n", time.Since(t).Seconds())
	}
	if b.warm {
		r.Failed = append(r.Failed, "the page cache could not be dropped between runs: run as root")
	}
	r.Seconds = time.Since(began).Seconds()
	return r, nil
}
