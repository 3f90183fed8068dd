package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

type statusOptions struct {
	*globals
	out   io.Writer
	dir   string        // "" for all mounts
	watch time.Duration // time between two updates; 0 for one output
	strip bool          // draw the files
}

// watchEvery is --watch without a time.
const watchEvery = time.Second

func newStatusCmd(g *globals) *cobra.Command {
	opts := statusOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show mounts: their state, local data, and requests",
		Long: `status shows all mounts on this machine, or the one on DIR: its state in one
sentence, how much of its files is local, what was fetched from where, and what
readers wait for. Root also sees the mounts of other users.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			if len(args) > 0 {
				opts.dir = args[0]
			}
			return runStatus(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&opts.watch, "watch", 0, "update every second, or as often as given (--watch=5s), until interrupted")
	f.Lookup("watch").NoOptDefVal = watchEvery.String()
	f.BoolVar(&opts.strip, "map", false, "draw the holes of each file, and its missing, present and verified parts")
	return cmd
}

func runStatus(ctx context.Context, opts statusOptions) error {
	if opts.watch < 0 {
		return usagef("--watch cannot be negative")
	}
	if opts.watch > 0 {
		return opts.watchMounts(ctx)
	}
	all, err := opts.mounts()
	if err != nil {
		return err
	}
	if len(all) == 0 && !opts.json {
		opts.note("nothing is mounted")
	}
	text, err := opts.render(all, time.Now())
	if err == nil {
		_, err = io.WriteString(opts.out, text)
	}
	return err
}

// render returns the whole output for these mounts.
func (opts *statusOptions) render(all []control.Mount, now time.Time) (string, error) {
	var b strings.Builder
	if opts.json {
		err := printJSON(&b, control.Status{Version: control.Version, Mounts: all})
		return b.String(), err
	}
	width := columns(opts.out)
	for i, m := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		printStatus(&b, m, now)
		if opts.strip && len(m.Files) > 0 {
			printMaps(&b, m.Files, width)
		}
	}
	return b.String(), nil
}

// mounts returns the requested mounts.
func (opts *statusOptions) mounts() ([]control.Mount, error) {
	all, err := allMounts()
	if err != nil {
		return nil, err
	}
	if opts.dir != "" {
		n, err := lookUp(opts.dir)
		if err != nil {
			return nil, err
		}
		all = slices.DeleteFunc(all, func(m control.Mount) bool { return !n.is(m.Dir, m.Device) })
		if len(all) == 0 {
			return nil, fmt.Errorf("no epochfs is mounted on %s: %w", n.dir, errNotFound)
		}
	}
	addUsers(all)
	for i := range all {
		m := &all[i]
		m.Summary = m.Sentence(time.Now())
		for f := range m.Files {
			if !opts.strip {
				m.Files[f].Map = nil
			}
		}
	}
	return all, nil
}

// addUsers adds the users of each mount.
func addUsers(all []control.Mount) {
	known, err := mounts.All()
	if err != nil || len(all) == 0 {
		return
	}
	known = slices.DeleteFunc(known, func(k *mounts.Mount) bool {
		return !slices.ContainsFunc(all, func(m control.Mount) bool { return m.Dir == k.Dir })
	})
	for i, users := range mounts.UsersOf(known) {
		at := slices.IndexFunc(all, func(m control.Mount) bool { return m.Dir == known[i].Dir })
		all[at].Users = asUsers(users)
	}
}

// allMounts returns the mounts whose processes answer, and those that only
// the kernel knows.
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
	var silent []string
	for _, m := range answered {
		if m.Dir == "" {
			silent = append(silent, m.Trouble)
			continue
		}
		all = append(all, m)
	}
	if os.Geteuid() == 0 {
		all = append(all, othersMounts(known)...)
	}
	for _, k := range known {
		if slices.ContainsFunc(all, func(m control.Mount) bool { return m.Dir == k.Dir || m.Device == k.Device() }) {
			continue // also one that is mounted in several places
		}
		all = append(all, control.Silent(k.Dir, k.Device(), k.Source, strings.Join(append([]string{noAnswer}, silent...), ": ")))
	}
	slices.SortFunc(all, func(a, b control.Mount) int {
		return cmp.Or(strings.Compare(a.Dir, b.Dir), b.PID-a.PID)
	})
	// During a takeover, both processes may answer.
	return slices.CompactFunc(all, func(a, b control.Mount) bool {
		return a.Dir == b.Dir && (a.Device == b.Device || a.Device == "" || b.Device == "")
	}), nil
}

// noAnswer is the trouble of a mount that only the kernel knows.
const noAnswer = "no process answers for it: it is dead, stopped, another user's, or has another " + control.DirEnv + "; see its log"

// othersMounts asks the processes of other users, which are trusted only
// about their own mounts.
func othersMounts(known []*mounts.Mount) (all []control.Mount) {
	asked := map[int]bool{0: true}
	for _, k := range known {
		if asked[k.UID] {
			continue
		}
		asked[k.UID] = true
		for _, m := range control.ListOf(k.UID) {
			at := slices.IndexFunc(known, func(o *mounts.Mount) bool { return o.Dir == m.Dir && o.UID == k.UID })
			if at >= 0 {
				m.Device = known[at].Device()
				all = append(all, m)
			}
		}
	}
	return all
}

// watchMounts prints updates until it is interrupted, or until the requested
// mount is gone.
func (opts *statusOptions) watchMounts(ctx context.Context) error {
	screen := newScreen(opts.out)
	tick := time.NewTicker(opts.watch)
	defer tick.Stop()
	for {
		all, err := opts.mounts()
		if err != nil {
			return err
		}
		text, err := opts.render(all, time.Now())
		if err != nil {
			return err
		}
		if text == "" {
			text = "nothing is mounted\n"
		}
		if err := screen.show(text); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil // an interrupt is the normal end
		}
	}
}
