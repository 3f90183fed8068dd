package main

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/mounting"
)

const (
	// completionTime is how long a shell waits for completions.
	completionTime = 5 * time.Second
	// mostCompleted bounds the completions.
	mostCompleted = 1000
)

// completeDisk completes the disk of a snapshot.
func (g *globals) completeDisk(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return g.complete(cmd, args, 1, func(ctx context.Context, o *mounting.Opened) []string {
		return titlesOf(o, typed, true)
	})
}

// completeFile completes a file of a snapshot, or one in its disks.
func (g *globals) completeFile(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return g.complete(cmd, args, 1, func(ctx context.Context, o *mounting.Opened) []string {
		return g.filesOf(ctx, o, typed)
	})
}

// complete opens the reference in args for one completion. An error results
// in no completions.
func (g *globals) complete(cmd *cobra.Command, args []string, at int, names func(ctx context.Context, o *mounting.Opened) []string) ([]string, cobra.ShellCompDirective) {
	if len(args) < at {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) > at { // a directory of this machine
		return nil, cobra.ShellCompDirectiveDefault
	}
	g.quiet = true
	if g.prepare(cmd) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	o, err := g.open(ctx, args[0], completionTime)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer o.Close()
	return names(ctx, o), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// titlesOf returns the snapshot's files with the typed prefix.
func titlesOf(o *mounting.Opened, typed string, disksOnly bool) (names []string) {
	all, err := list(o, "")
	if err != nil {
		return nil
	}
	for _, f := range all {
		if _, isDisk := diskFormat(f.file); strings.HasPrefix(f.name, typed) && (isDisk || !disksOnly) {
			names = append(names, f.name)
		}
	}
	return names
}

// filesOf completes a title, then a path in its disk.
func (g *globals) filesOf(ctx context.Context, o *mounting.Opened, typed string) []string {
	file, a, err := find(o, typed)
	if err != nil || a.path == "" {
		return titlesOf(o, typed, false)
	}
	d, err := g.openGuest(ctx, o, file.file, "")
	if err != nil {
		return nil
	}
	defer d.Close()
	dir, begun := path.Split(a.path)
	at := a
	at.path = dir
	t, err := d.openTree(at)
	if err != nil {
		return nil
	}
	parent, err := t.Resolve(dir, true)
	if err != nil || vfs.Type(parent.Type) != vfs.Directory {
		return nil
	}
	var names []string
	_ = t.List(parent.Inode, false, func(f inside.File) error { // names before an error help, too
		if !strings.HasPrefix(f.Name, begun) || nameText(f.Name, true) != f.Name || len(names) >= mostCompleted {
			return nil
		}
		name := at.String() + f.Name
		if vfs.Type(f.Type) == vfs.Directory {
			name += "/"
		}
		names = append(names, name)
		return nil
	})
	return names
}
