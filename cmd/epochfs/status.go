package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

type statusOptions struct {
	*globals
	out io.Writer
	dir string // "" for all mounts
}

func newStatusCmd(g *globals) *cobra.Command {
	opts := statusOptions{globals: g}
	return &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show mounts: what is local, what is fetched, what they wait for",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			if len(args) > 0 {
				opts.dir = args[0]
			}
			return runStatus(opts)
		},
	}
}

func runStatus(opts statusOptions) error {
	all, err := allMounts()
	if err != nil {
		return err
	}
	if opts.dir != "" {
		// Not realPath: it would hang on a mount that does not answer.
		dir, err := filepath.Abs(opts.dir)
		if err != nil {
			return err
		}
		if parent, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil {
			dir = filepath.Join(parent, filepath.Base(dir))
		}
		all = slices.DeleteFunc(all, func(m control.Mount) bool { return m.Dir != dir })
		if len(all) == 0 {
			return fmt.Errorf("nothing of ours is mounted on %s: %w", dir, errNotFound)
		}
	}
	if opts.json {
		return printJSON(opts.out, control.Status{Version: control.Version, Mounts: all})
	}
	for _, m := range all {
		if err := printStatus(opts.out, m, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// allMounts are those whose processes answer, and those that the kernel
// alone knows of.
func allMounts() ([]control.Mount, error) {
	answered, err := control.List(control.Dir())
	if err != nil {
		return nil, err
	}
	known, err := mounts.All()
	if err != nil {
		return nil, err
	}
	all := []control.Mount{}
	silent := ""
	for _, m := range answered {
		if m.Dir == "" {
			silent = ": " + m.Trouble
			continue
		}
		all = append(all, m)
	}
	for _, k := range known {
		if slices.ContainsFunc(all, func(m control.Mount) bool { return m.Dir == k.Dir }) {
			continue
		}
		all = append(all, control.Mount{
			Reference: k.Source, Dir: k.Dir, Files: []control.File{}, Waiting: []control.Wait{},
			Trouble: "its process is dead, stopped, or another user's" + silent,
		})
	}
	slices.SortFunc(all, func(a, b control.Mount) int { return strings.Compare(a.Dir, b.Dir) })
	return all, nil
}

func printStatus(out io.Writer, m control.Mount, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", printable(m.Dir), printable(m.Reference))
	if m.Trouble != "" {
		fmt.Fprintf(&b, "  %s\n", printable(m.Trouble))
	}
	if m.PID != 0 {
		fmt.Fprintf(&b, "  process %d, for %s; %d requests, %s, %d retries\n", m.PID,
			now.Sub(m.Since).Round(time.Second), m.Network.Requests, size(m.Network.Bytes), m.Network.Retries)
	}
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	if len(m.Files) > 0 {
		fmt.Fprintln(tw, "  FILE\tSIZE\tDATA\tLOCAL\tOPEN\tVERIFIED")
	}
	for _, f := range m.Files {
		mode, verified := "no", "no"
		if f.Mode != "" {
			mode = f.Mode
		}
		if f.Verified {
			verified = "yes"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\n", printable(f.Name), size(f.Size), size(f.Data), size(f.Local), mode, verified)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, w := range m.Waiting {
		why := "the first answer is on its way"
		if w.Error != "" {
			why = "tried again after: " + w.Error
		}
		fmt.Fprintf(&b, "  waits for %s of %s at %d since %s: %s\n", size(w.Length), printable(w.File), w.Offset,
			now.Sub(w.Since).Round(time.Second), printable(why))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
