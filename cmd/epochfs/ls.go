package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/control"
)

type lsOptions struct {
	*globals
	out       io.Writer
	long      bool
	reference string
	file      string // "" for all
	recursive bool
	base      string
}

func newLsCmd(g *globals) *cobra.Command {
	opts := lsOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "ls REF [FILE]",
		Short: "List a snapshot's files, or files in one of its disks, without a mount",
		Long: `ls lists a snapshot's files. FILE may be a path in a disk: DISK:/path, or
DISK:VOLUME:/path if the disk has several file systems (see epochfs fs). There, -l
prints the output of ls -ln, with numeric owners, because only the guest knows its
users. Names are escaped on a terminal. DISK:upper:/path shows the upper layer of
an overlay as the guest sees it, and marks what it deletes or hides.`,
		Example: `  epochfs ls -l registry.example/team/vm:v1
  epochfs ls -l registry.example/team/vm:v1 cow.raw:/upper/etc
  epochfs ls -R registry.example/team/vm:v1 data-x.raw:vg0/root:/var/log`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: g.completeFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference = args[0]
			if len(args) > 1 {
				opts.file = args[1]
			}
			return runLs(cmd.Context(), opts)
		},
	}
	cmd.Flags().BoolVarP(&opts.long, "long", "l", false, "print a table with modes, sizes, data, share of holes and age; in a disk as ls -ln")
	cmd.Flags().BoolVarP(&opts.recursive, "recursive", "R", false, "in a disk: list directories recursively")
	cmd.Flags().StringVar(&opts.base, "base", "", baseUsage)
	return cmd
}

// lsFile is one file in the JSON output.
type lsFile struct {
	Name string `json:"name"`
	Mode uint32 `json:"mode"`
	Size int64  `json:"size"`
	Data int64  `json:"data"`
}

func runLs(ctx context.Context, opts lsOptions) error {
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	if opts.file != "" {
		file, a, err := find(o, opts.file)
		if err == nil && a.path != "" {
			return runLsInside(ctx, opts, o, file.file, a)
		}
		if err != nil {
			return err
		}
	}
	if opts.recursive || opts.base != "" {
		return usagef("-R and --base are for paths in a disk, such as cow.raw:/etc")
	}
	files, err := list(o, opts.file)
	if err != nil {
		return err
	}
	if opts.json {
		result := struct {
			Version   int       `json:"version"`
			Reference string    `json:"reference"`
			Created   time.Time `json:"created,omitzero"`
			Files     []lsFile  `json:"files"`
		}{1, o.Reference.String(), o.Artifact.Created, []lsFile{}}
		for _, f := range files {
			result.Files = append(result.Files, lsFile{f.name, f.mode, f.size, f.data})
		}
		return printJSON(opts.out, result)
	}
	return opts.print(o.Artifact.Created, files)
}

func (opts *lsOptions) print(created time.Time, files []shown) error {
	w := tabwriter.NewWriter(opts.out, 0, 0, 2, ' ', 0)
	if opts.long {
		fmt.Fprintln(w, "MODE\tSIZE\tDATA\tHOLES\tCREATED\tNAME")
	}
	age := "-"
	if !created.IsZero() {
		age = humanize.Time(created)
	}
	for _, f := range files {
		if !opts.long {
			fmt.Fprintln(w, printable(f.name))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", modeText(f.mode), size(f.size), size(f.data), holes(f.size, f.data), age, printable(f.name))
	}
	return w.Flush()
}

// holes returns the share of holes in a file.
func holes(size, data int64) string { return control.Percent(min(size-data, size), max(size, 1)) }
