package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/internal/doctor"
)

type doctorOptions struct {
	*globals
	out       io.Writer
	reference string // "" for none
}

func newDoctorCmd(g *globals) *cobra.Command {
	opts := doctorOptions{globals: g}
	return &cobra.Command{
		Use:   "doctor [REF]",
		Short: "Check whether a mount would work, and what to do if not",
		Long: `doctor tries what a mount needs: FUSE, the cache's directory and, with a reference,
its registry and mirrors. It leaves nothing behind. Each line is ok, a note
(something could be better) or a problem, with what to do about it. The exit code
is 0 only if a mount would work, else that of the first problem.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			if len(args) > 0 {
				opts.reference = args[0]
			}
			return runDoctor(cmd.Context(), opts)
		},
	}
}

// diagnosis is the JSON output.
type diagnosis struct {
	Version int              `json:"version"`
	Works   bool             `json:"works"` // a mount would work
	Checks  []diagnosedThing `json:"checks"`
}

type diagnosedThing struct {
	Name  string       `json:"name"`
	Level doctor.Level `json:"level"` // "ok", "note" or "problem"
	Found string       `json:"found"`
	Do    string       `json:"do"` // "" if there is nothing to do
}

func runDoctor(ctx context.Context, opts doctorOptions) error {
	cfg, err := opts.config(readTimeout)
	if err != nil {
		return err
	}
	all, err := doctor.Run(ctx, doctor.Options{Config: cfg, Reference: opts.reference, Cocoon: os.Getenv(cocoon.BinaryEnv)})
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fails := doctor.Err(all)
	if opts.json {
		d := diagnosis{Version: 1, Works: fails == nil}
		for _, c := range all {
			d.Checks = append(d.Checks, diagnosedThing{c.Name, c.Level, c.Found, c.Do})
		}
		err = printJSON(opts.out, d)
	} else {
		err = printDiagnosis(opts.out, all)
	}
	if err != nil {
		return err
	}
	return fails
}

func printDiagnosis(out io.Writer, all []doctor.Check) error {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, c := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Level, c.Name, printable(c.Found))
		if c.Do != "" {
			fmt.Fprintf(w, "\t\t-> %s\n", printable(c.Do))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(out, b.String())
	return err
}
