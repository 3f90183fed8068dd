package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

type fsOptions struct {
	*globals
	out       io.Writer
	reference string
	disk      string // "" for all
	base      string
}

func newFsCmd(g *globals) *cobra.Command {
	opts := fsOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "fs REF [DISK]",
		Short: "List the file systems in a snapshot's disks",
		Long: `fs lists the file systems in a snapshot's disks, or in one disk: the address to use
in ls, cat, cp and diff, the type, size, label and state. As the guest was running,
its file system's journal is replayed in memory. Data that the guest had not yet
written to its disk is only in the memory file.

The disk of a VM from a container image holds the upper layer of an overlay, which
the state mentions: its paths begin with /upper, and DISK:upper:/ shows them as the
guest sees them.`,
		Example: `  epochfs fs registry.example/team/vm:v1
  epochfs ls -l registry.example/team/vm:v1 cow.raw:/upper/etc`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: g.completeDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference = args[0]
			if len(args) > 1 {
				opts.disk = args[1]
			}
			return runFs(cmd.Context(), opts)
		},
	}
	cmd.Flags().StringVar(&opts.base, "base", "", baseUsage)
	return cmd
}

const baseUsage = "backing image of a qcow2 disk (default the artifact's base image)"

// fsRow is a volume in the output.
type fsRow struct {
	Disk    string `json:"disk"`
	Volume  string `json:"volume"`  // "" if it need not be named
	Address string `json:"address"` // prefix of a path in it
	Type    string `json:"type"`
	Size    int64  `json:"size"`
	Label   string `json:"label"`
	UUID    string `json:"uuid,omitempty"`
	State   string `json:"state"`
	Upper   bool   `json:"upper"` // an overlay's upper layer
	Error   string `json:"error,omitempty"`
}

func runFs(ctx context.Context, opts fsOptions) error {
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	files, err := list(o, opts.disk)
	if err != nil {
		return err
	}
	var rows []fsRow
	var failed []error
	for _, f := range files {
		if _, ok := diskFormat(f.file); !ok {
			if opts.disk != "" {
				return fmt.Errorf("%s: %s is not a disk", o.Reference, f.name)
			}
			continue
		}
		found, err := opts.look(ctx, o, f.file)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && exitCode(err) != exitContent && exitCode(err) != exitFailed {
			return err
		}
		if err != nil {
			failed = append(failed, err)
			if len(found) == 0 {
				var at *insideError
				row := fsRow{Disk: f.name, Address: f.name + ":", Type: "unknown", Size: f.size, State: "cannot be read", Error: err.Error()}
				if errors.As(err, &at) {
					row.Error = at.cause.Error()
				}
				found = []fsRow{row}
			}
		}
		rows = append(rows, found...)
	}
	if err := opts.print(rows); err != nil {
		return err
	}
	if len(rows) == 0 {
		opts.note("%s has no disks", o.Reference)
	}
	return errors.Join(failed...)
}

// look returns a disk's volumes. A volume that cannot be read is marked, and
// is no error; a damaged one is marked and an error.
func (opts *fsOptions) look(ctx context.Context, o *mounting.Opened, f *layout.File) ([]fsRow, error) {
	d, err := opts.openGuest(ctx, o, f, opts.base)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	all, err := d.Volumes()
	if err != nil {
		return nil, d.explain(address{title: f.Name}, err)
	}
	var rows []fsRow
	for _, v := range all {
		row := fsRow{Disk: f.Name, Volume: v.Name, Address: f.Name + ":", Type: cmp.Or(v.Type, "unknown"), Size: v.Size, Label: v.Label}
		if len(all) > 1 || v.Name != "" {
			row.Address += volumeName(v) + ":"
		}
		if err := opts.describe(d, v, &row); err != nil {
			return append(rows, row), d.explain(address{title: f.Name, volume: v.Name}, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// describe opens a volume to find its state.
func (opts *fsOptions) describe(d *guest, v inside.Volume, row *fsRow) error {
	if containers[v.Type] {
		row.State = "-"
		return nil
	}
	row.State = "cannot be read"
	fsys, err := d.FS(v.Number, false)
	switch {
	case err == nil:
	case errors.Is(err, vfs.ErrUnsupported):
		row.Error = err.Error()
		return nil
	default:
		row.Error = err.Error()
		return err
	}
	row.Type, row.UUID, row.State, row.Upper = cmp.Or(fsys.Type, row.Type), fsys.UUID, fsys.State, fsys.HasUpper
	row.Label = cmp.Or(fsys.Label, row.Label)
	if fsys.Size > 0 {
		row.Size = fsys.Size
	}
	return nil
}

func (opts *fsOptions) print(rows []fsRow) error {
	if opts.json {
		for _, r := range rows {
			if err := printLine(opts.out, r); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(opts.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PATHS\tTYPE\tSIZE\tLABEL\tSTATE")
	for _, r := range rows {
		state := r.State
		if r.Upper {
			state += "; upper layer of an overlay: " + r.Address + "upper:/"
		}
		if r.Error != "" {
			state += ": " + r.Error
		}
		fmt.Fprintf(w, "%s/\t%s\t%s\t%s\t%s\n", printable(r.Address), printable(cmp.Or(r.Type, "-")), size(r.Size), cmp.Or(printable(r.Label), "-"), printable(state))
	}
	return w.Flush()
}
