package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/whole"
)

type cpOptions struct {
	*globals
	out       io.Writer
	reference string
	file      string
	dir       string
	output    string // a tar; "-" for stdout, "" for none
	base      string
	allow     copyRules
}

// copyRules are the things with possible side effects that a copy may
// contain.
type copyRules struct {
	setuid  bool // setuid, setgid and sticky bits
	devices bool // device files and FIFOs
	links   bool // symbolic links that lead out of the copy
	owners  bool // the guest's numeric owners
}

func newCpCmd(g *globals) *cobra.Command {
	opts := cpOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "cp REF FILE DIR | cp REF FILE -o TAR",
		Short: "Copy a snapshot's file, or files out of one of its disks, without a mount",
		Long: `cp copies a snapshot's file into a directory, without a mount. FILE may be a path
in a disk: DISK:/path, or DISK:VOLUME:/path if the disk has several file systems
(see epochfs fs). A directory is copied with everything in it. With -o the copy
is a tar.

The copy has the modes, times, holes and hard links of the original. Things that
could be dangerous on this machine are left out and counted, unless requested:
setuid, setgid and sticky bits (--setuid), device files and FIFOs (--devices), and
symbolic links that lead, or may lead, out of the copy (--links). Files belong to
the user who copies, unless --owners keeps the guest's numeric owners. Sockets are
never made. Existing files in DIR are not overwritten.`,
		Example: `  epochfs cp registry.example/team/vm:v1 cow.raw:/upper/etc out
  epochfs cp registry.example/team/vm:v1 data-x.raw:/srv -o - | tar -t`,
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: g.completeFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference, opts.file = args[0], args[1]
			if len(args) > 2 {
				opts.dir = args[2]
			}
			if err := notEmpty(cmd.Flags(), "output", "base"); err != nil {
				return err
			}
			switch {
			case opts.dir == "" && opts.output == "":
				return usagef("usage: epochfs cp REF FILE DIR, or epochfs cp REF FILE -o TAR")
			case opts.dir != "" && opts.output != "":
				return usagef("a directory and --output exclude each other")
			}
			return runCp(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&opts.output, "output", "o", "", "write a tar to this file; - for stdout")
	f.StringVar(&opts.base, "base", "", baseUsage)
	f.BoolVar(&opts.allow.setuid, "setuid", false, "keep setuid, setgid and sticky bits")
	f.BoolVar(&opts.allow.devices, "devices", false, "make device files and FIFOs")
	f.BoolVar(&opts.allow.links, "links", false, "make symbolic links that lead out of the copy")
	f.BoolVar(&opts.allow.owners, "owners", false, "keep the guest's user and group numbers")
	return cmd
}

func runCp(ctx context.Context, opts cpOptions) error {
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	file, a, err := find(o, opts.file)
	if err != nil {
		return err
	}
	return opts.into(func(to target) error {
		c := &copier{cpOptions: &opts, to: to}
		defer func() { c.meter.finish() }()
		c.meter = opts.startMeter("cp "+opts.file, 0)
		if a.path == "" {
			err = c.snapshotFile(ctx, o, file)
		} else {
			err = c.inside(ctx, o, file, a)
		}
		if err == nil {
			err = c.to.finish()
		}
		return c.meter.interrupted(ctx, err, "the files copied so far remain")
	})
}

// into opens the target of the copy.
func (opts *cpOptions) into(run func(to target) error) error {
	switch opts.output {
	case "":
		t, err := newDirTarget(opts.dir, opts.allow)
		if err != nil {
			return cannotWrite(opts.dir, err)
		}
		defer t.close()
		return run(t)
	case "-":
		return run(newTarTarget(opts.out, opts.allow))
	}
	file, err := whole.Create(opts.output)
	if err != nil {
		return cannotWrite(opts.output, err)
	}
	defer file.Close()
	if err := run(newTarTarget(file, opts.allow)); err != nil {
		return err
	}
	return cannotWrite(opts.output, file.Commit())
}

// contents visits a file's data in ascending order, without its holes.
type contents func(visit func(off int64, p []byte) error) error

// target is the destination of a copy. Paths are relative, of names joined
// by slashes; a directory precedes its contents. Errors concern the target
// or come from contents.
type target interface {
	dir(name string, f *inside.File) error
	file(name string, f *inside.File, data contents) error
	symlink(name string, f *inside.File) error
	hardlink(name, to string) error
	device(name string, f *inside.File) error
	finish() error
}

// copier copies to a target.
type copier struct {
	*cpOptions
	to    target
	meter *meter
	left  leftOut
}

// leftOut counts what was not copied.
type leftOut struct{ setuid, devices, links, sockets, metacopy, damaged int }

// snapshotFile copies one of the snapshot's files.
func (c *copier) snapshotFile(ctx context.Context, o *mounting.Opened, f shown) error {
	info := &inside.File{Name: f.name, Mode: uint16(f.mode) | 0o200, Size: f.size, Modified: o.Artifact.Created}
	err := c.to.file(f.name, info, c.counted(func(visit func(off int64, p []byte) error) error {
		return readShown(ctx, o, f, 0, f.size, visit)
	}))
	if err == nil && f.file != nil {
		err = settle(ctx, o, f.file)
	}
	return err
}

// counted returns data with progress.
func (c *copier) counted(data contents) contents {
	return func(visit func(off int64, p []byte) error) error {
		return data(func(off int64, p []byte) error {
			c.meter.add(int64(len(p)))
			return visit(off, p)
		})
	}
}

// inside copies a path of a disk.
func (c *copier) inside(ctx context.Context, o *mounting.Opened, disk shown, a address) error {
	d, err := c.openGuest(ctx, o, disk.file, c.base)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := d.openTree(a)
	if err != nil {
		return err
	}
	t.stale(c.globals, "")
	at, err := d.resolve(t, true)
	if err != nil {
		return err
	}
	w := &copyWalk{copier: c, tree: t, links: map[uint64]string{}, seen: map[uint64]bool{}}
	err = w.run(at)
	c.tell()
	if err != nil {
		var file fileError
		if errors.As(err, &file) {
			return err
		}
		return d.explain(a, err)
	}
	if c.left.damaged > 0 {
		return d.explain(a, fmt.Errorf("%w: %d files were left out", errDamaged, c.left.damaged))
	}
	return nil
}

// tell prints which kinds of files were not copied, and the flags that copy them.
func (c *copier) tell() {
	var all []string
	for _, l := range []struct {
		n          int
		what, flag string
	}{
		{c.left.setuid, "setuid, setgid or sticky bits of %d files", "--setuid"},
		{c.left.devices, "%d device files or FIFOs", "--devices"},
		{c.left.links, "%d symbolic links that lead out of the copy", "--links"},
		{c.left.sockets, "%d sockets", ""},
		{c.left.metacopy, "%d files with contents in the base image", ""},
	} {
		if l.n == 0 {
			continue
		}
		text := fmt.Sprintf(l.what, l.n)
		if l.flag != "" {
			text += " (" + l.flag + " copies them)"
		}
		all = append(all, text)
	}
	if len(all) > 0 {
		c.note("left out: %s", strings.Join(all, "; "))
	}
}

// leadsOut reports whether a symbolic link at name leads, or may lead, out
// of the copy's directory. A name before a later ".." may be another link,
// which leads anywhere.
func leadsOut(name, target string) bool {
	if target == "" || strings.HasPrefix(target, "/") {
		return true
	}
	depth := strings.Count(name, "/")
	up := true // only ".." so far
	for step := range strings.SplitSeq(target, "/") {
		switch {
		case step == "" || step == ".":
		case step != "..":
			up = false
		case !up:
			return true
		default:
			depth--
		}
	}
	return depth < 0
}

// permissions returns f's permissions in the copy.
func (c *copyRules) permissions(f *inside.File) os.FileMode {
	mode := os.FileMode(f.Mode & 0o777)
	if !c.setuid {
		return mode
	}
	for bit, to := range map[uint16]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if f.Mode&bit != 0 {
			mode |= to
		}
	}
	return mode
}
