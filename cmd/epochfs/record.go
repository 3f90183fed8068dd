package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/snapshot"
)

type recordOptions struct {
	*globals
	out       io.Writer
	flags     *pflag.FlagSet
	reference string
	earlier   []string // files of earlier recordings
	command   []string
	runs      int
	window    time.Duration
	settled   time.Duration // the flag --quiet
	file      string
	push      bool
	others    bool // the flag --allow-other
}

func newRecordCmd(g *globals) *cobra.Command {
	opts := recordOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "record REF [FILE...] -- COMMAND {} [ARG...]",
		Short: "Record which pages of a snapshot a VM touches when it starts",
		Long: `record mounts the snapshot on a new directory, runs COMMAND with that directory in
place of {}, and notes which pages are read. Such a working set is fetched first by
later mounts of the snapshot.

The recording ends after --window, or when no new page was read for --quiet.
COMMAND gets SIGTERM then, and SIGKILL ten seconds later, because the mount goes
with it: a VM that COMMAND leaves running must be stopped by COMMAND. Every run
has a mount of its own. Recordings that mount --record made, FILE, are merged with
the new ones; with FILE, COMMAND may be left out.

The set goes to the file of -o, or with --push to the registry. Otherwise it stays
in the cache, for mounts on this machine.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "output"); err != nil {
				return err
			}
			opts.out, opts.flags = cmd.OutOrStdout(), cmd.InheritedFlags()
			if n := cmd.ArgsLenAtDash(); n >= 0 {
				args, opts.command = args[:n], args[n:]
			}
			if len(args) == 0 {
				return usagef("usage: %s", cmd.UseLine())
			}
			opts.reference, opts.earlier = args[0], args[1:]
			return runRecord(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.IntVar(&opts.runs, "runs", 1, "how often COMMAND is run; with three or more recordings, pages that were read in one alone are left out")
	f.DurationVar(&opts.window, "window", 30*time.Second, "how long to record")
	f.DurationVar(&opts.settled, "quiet", 2*time.Second, "end a recording when no new page was read for this long, 0 for never")
	f.StringVarP(&opts.file, "output", "o", "", "write the set to this file")
	f.BoolVar(&opts.push, "push", false, "upload the set to the snapshot's registry")
	f.BoolVar(&opts.others, "allow-other", false, "let other users read the mount, such as a hypervisor's")
	return cmd
}

// check refuses what cannot be.
func (opts *recordOptions) check() error {
	switch {
	case opts.push && opts.file != "":
		return usagef("-o and --push exclude each other")
	case opts.runs < 1 || opts.runs > 1000:
		return usagef("--runs is a number from 1 to 1000")
	case opts.window <= 0 || opts.settled < 0:
		return usagef("--window and --quiet are times, such as 30s")
	case len(opts.command) == 0 && len(opts.earlier) == 0:
		return usagef("a command is needed, after --")
	case len(opts.command) > 0 && !slices.ContainsFunc(opts.command, func(arg string) bool { return strings.Contains(arg, "{}") }):
		return usagef("the command has no {}, which stands for the directory of the mount")
	}
	return nil
}

func runRecord(ctx context.Context, opts recordOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	var sets []*workingset.Set
	for _, name := range opts.earlier {
		set, err := readSet(name)
		if err != nil {
			return err
		}
		sets = append(sets, set)
	}
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	for run := range opts.runs {
		if len(opts.command) == 0 {
			break
		}
		set, err := opts.record(ctx, o.Reference.String())
		if err != nil {
			return err
		}
		sets = append(sets, set)
		opts.note("recording %d of %d: %s touched", run+1, opts.runs, size(set.Bytes()))
	}
	merged, err := workingset.Merge(sets...)
	if err != nil {
		return err
	}
	set := mounting.Inherit(merged, o.Artifact.Files)
	if len(set.Files) == 0 {
		return fmt.Errorf("nothing of %s was touched: the command must use the directory that stands for {}", o.Reference)
	}
	return opts.finish(ctx, o, set)
}

// recorded is the JSON output. Sizes are in bytes.
type recorded struct {
	Version   int    `json:"version"`
	Reference string `json:"reference"`
	Runs      int    `json:"runs"`
	Partial   bool   `json:"partial"`
	Files     int    `json:"files"`
	Stages    int    `json:"stages"`
	Size      int64  `json:"size"`
	Data      int64  `json:"data"` // of Size, what is no hole
	Output    string `json:"output,omitempty"`
	Digest    string `json:"digest,omitempty"` // of the set's manifest
}

// finish puts the set where it is to be, and tells the user.
func (opts *recordOptions) finish(ctx context.Context, o *mounting.Opened, set *workingset.Set) (err error) {
	done := recorded{
		Version: 1, Reference: o.Reference.String(), Runs: set.Runs, Partial: set.Partial,
		Files: len(set.Files), Stages: set.Stages(), Size: set.Bytes(), Data: touchedData(o.Artifact, set),
	}
	opts.warn(o, done.Data)
	if set.Partial && opts.file != "" {
		opts.note("the recording was cut short: its mount's process was killed, and the set is marked as partial")
	}
	where := "kept in the cache, for mounts on this machine"
	switch {
	case opts.push:
		done.Digest, err = o.PushWorkingSet(ctx, set)
		where = "pushed as " + done.Digest
	case opts.file != "":
		done.Output = opts.file
		err = writeSet(opts.file, set)
		where = "written to " + opts.file
	case set.Partial:
		err = mounting.ErrPartial
	default:
		o.KeepWorkingSet(set)
	}
	if err != nil {
		return fmt.Errorf("working set of %s: %w", o.Reference, err)
	}
	if opts.json {
		return printJSON(opts.out, done)
	}
	_, err = fmt.Fprintf(opts.out, "%s: working set of %s in %d stages, from %d recordings; %s\n", o.Reference, size(done.Size), done.Stages, done.Runs, printable(where))
	return err
}

// warn says what spoils a recording.
func (opts *recordOptions) warn(o *mounting.Opened, touched int64) {
	sizes, err := o.Sizes()
	if err == nil && touched > sizes.Data/2 {
		opts.note("%s of %s of data were touched: a set like that saves nothing. restores that copy the memory or fill it on demand read all of it, and so do hugepages, shared memory and Windows guests", size(touched), size(sizes.Data))
	}
}

// touchedData returns how much data, without holes, a set names.
func touchedData(a *snapshot.Artifact, set *workingset.Set) (n int64) {
	for _, f := range a.Files {
		in := set.For(f.Name, f.Key(), f.Size())
		if in == nil {
			continue
		}
		for _, e := range in.Extents {
			from, to := e.Page*workingset.PageSize, min(e.End()*workingset.PageSize, f.Size())
			n += f.Map.PayloadAt(to) - f.Map.PayloadAt(from)
		}
	}
	return n
}

// errCommand is in the chain of an error of the command that is recorded.
var errCommand = errors.New("the recorded command failed")
