package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/mounting"
)

type diffOptions struct {
	*globals
	out        io.Writer
	references [2]string
	file       string // "" for envelope and files
	base       string
	checksum   bool
	metadata   bool
	exitCode   bool
}

func newDiffCmd(g *globals) *cobra.Command {
	opts := diffOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "diff REF1 REF2 [FILE]",
		Short: "Show what differs between two snapshots, or between their disks",
		Long: `diff compares two snapshots: the values of their envelopes, and their files by the
digests of the files, or of their pieces, chunks or granules. For a file that
differs it prints how many bytes differ at most, and a strip of where: filled
cells differ, grey ones are equal, dots are holes. It fetches no file contents.

With DISK:/path, or DISK:VOLUME:/path, it compares the files in a disk:

  +  only in REF2            -  only in REF1
  M  contents changed        T  another type of file
  U  only metadata changed

By default, contents count as changed if size, modification time or change time
differ. --checksum compares the contents of files of the same size, without reading
what digests show to be equal. --metadata also compares modes, owners and extended
attributes.

The exit code is 0 even if there are differences; with --exit-code it is then 1.`,
		Example: `  epochfs diff registry.example/team/vm:monday registry.example/team/vm:friday
  epochfs diff registry.example/team/vm:monday registry.example/team/vm:friday cow.raw:/upper/etc`,
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: g.completeDiff,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.references = [2]string(args[:2])
			if len(args) > 2 {
				opts.file = args[2]
			}
			return runDiff(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.checksum, "checksum", false, "in a disk: compare contents instead of times")
	f.BoolVar(&opts.metadata, "metadata", false, "in a disk: also compare modes, owners and extended attributes")
	f.BoolVar(&opts.exitCode, "exit-code", false, "exit with 1 if there are differences")
	f.StringVar(&opts.base, "base", "", baseUsage)
	return cmd
}

// differ compares two snapshots.
type differ struct {
	*diffOptions
	out   *bufio.Writer
	sides [2]*mounting.Opened
	found bool // a difference was found
}

func runDiff(ctx context.Context, opts diffOptions) error {
	d := &differ{diffOptions: &opts, out: bufio.NewWriterSize(opts.out, 64<<10)}
	for i, reference := range opts.references {
		o, err := opts.open(ctx, reference, readTimeout)
		if err != nil {
			return err
		}
		defer o.Close()
		d.sides[i] = o
	}
	err := d.run(ctx)
	if err = errors.Join(err, d.out.Flush()); err != nil {
		return err
	}
	if opts.exitCode && d.found {
		return &exitError{code: exitFailed} // without text: nothing failed
	}
	return nil
}

func (d *differ) run(ctx context.Context) error {
	if d.file == "" {
		if d.checksum || d.metadata || d.base != "" {
			return usagef("--checksum, --metadata and --base are for paths in a disk, such as cow.raw:/etc")
		}
		if err := d.envelopes(); err != nil {
			return err
		}
		return d.files(ctx, "")
	}
	_, a, err := find(d.sides[0], d.file)
	if err != nil {
		// A file that exists only in REF2 can still be compared as a whole.
		if _, b, other := find(d.sides[1], d.file); other != nil || b.path != "" {
			return err
		}
		return d.files(ctx, d.file)
	}
	if a.path == "" {
		return d.files(ctx, a.title)
	}
	return d.inside(ctx)
}

// printf prints a line for people.
func (d *differ) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

// completeDiff completes a path in a disk of the first reference.
func (g *globals) completeDiff(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 2 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return g.completeFile(cmd, args[:1], typed)
}
