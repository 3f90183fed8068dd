package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

type cacheOptions struct {
	*globals
	out    io.Writer
	older  age
	to     byteSize
	toSet  bool // whether --to was set
	all    bool
	dryRun bool
}

func newCacheCmd(g *globals) *cobra.Command {
	opts := &cacheOptions{globals: g}
	root := &cobra.Command{
		Use:   "cache",
		Short: "List, check and clean the cache",
		Long: `cache shows and manages the directory that stores fetched data. It is safe to use
beside live mounts: it never removes files that they have open.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command cache %q", args[0])
			}
			return cmd.Help()
		},
	}
	add := func(use, short, long string, run func(*cacheOptions, context.Context, *cache.Cache) error) *cobra.Command {
		cmd := &cobra.Command{
			Use: use, Short: short, Long: long, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				opts.out = cmd.OutOrStdout()
				opts.toSet = cmd.Flags().Changed("to")
				if cmd.Name() == "prune" && !opts.all && opts.older == 0 && !opts.toSet {
					return usagef("choose what to remove: --older, --to or --all")
				}
				return opts.with(cmd.Context(), run)
			},
		}
		root.AddCommand(cmd)
		return cmd
	}
	add("ls", "List what the cache holds, by reference and file", "", (*cacheOptions).ls)
	add("du", "Sum up what the cache takes, by reference", "", (*cacheOptions).du)
	prune := add("prune", "Remove files that no mount uses", `prune removes whole files that no process has open: those not used for the time
given with --older, the least recently used ones until the cache is no larger than
--to, or --all of them. It then removes the metadata of artifacts without files.`, (*cacheOptions).prune)
	f := prune.Flags()
	f.Var(&opts.older, "older", "remove files not used for this long, such as 7d or 12h")
	f.Var(&opts.to, "to", "remove the least recently used files until the cache has this size, such as 20GiB")
	f.BoolVar(&opts.all, "all", false, "remove all files that are not in use")
	f.BoolVar(&opts.dryRun, "dry-run", false, "print what would be removed, and remove nothing")
	add("verify", "Verify the whole cache by digests and checksums", `verify reads the whole cache. It marks damaged data as missing, so that the next
read fetches it again, and then exits with code 6.`, (*cacheOptions).verify)
	return root
}

// with runs a command on the open cache. If there is no cache, it runs on an
// empty inventory.
func (opts *cacheOptions) with(ctx context.Context, run func(*cacheOptions, context.Context, *cache.Cache) error) error {
	cfg, err := opts.config(readTimeout)
	if err != nil {
		return err
	}
	opts.cacheDir = cfg.CacheDir
	cfg.Log = nil // findings are the result, and are printed once
	c, err := cfg.OpenCache()
	switch {
	case err != nil:
		return err
	case c == nil && opts.json:
		return printJSON(opts.out, listingOf(cfg.CacheDir, &cache.Inventory{}))
	case c == nil:
		opts.note("there is no cache in %s yet", cfg.CacheDir)
		return nil
	}
	return errors.Join(run(opts, ctx, c), c.Close())
}

func (opts *cacheOptions) ls(_ context.Context, c *cache.Cache) error {
	inv, err := c.Inventory()
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(opts.out, listingOf(opts.cacheDir, inv))
	}
	return printListing(opts.out, listingOf(opts.cacheDir, inv))
}

func (opts *cacheOptions) du(_ context.Context, c *cache.Cache) error {
	inv, err := c.Inventory()
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(opts.out, usageOf(opts.cacheDir, inv))
	}
	return printUsage(opts.out, usageOf(opts.cacheDir, inv))
}

func (opts *cacheOptions) prune(ctx context.Context, c *cache.Cache) error {
	inv, err := c.Inventory()
	if err != nil {
		return err
	}
	what := cache.PruneOptions{Older: opts.older.duration(), To: -1, All: opts.all, DryRun: opts.dryRun}
	if opts.toSet {
		what.To = int64(opts.to)
	}
	m := opts.start(&meter{label: "prune", of: filesOfIt, total: int64(len(inv.Files))})
	what.OnFile = func() { m.add(1) }
	done, err := c.Prune(ctx, what)
	m.finish()
	if err != nil && ctx.Err() == nil {
		return err
	}
	out := prunedOf(done, inv, opts.dryRun)
	if opts.json {
		return errors.Join(printJSON(opts.out, out), m.interrupted(ctx, err, "the rest was not removed"))
	}
	if err := errors.Join(printPruned(opts.out, out), m.interrupted(ctx, err, "the rest was not removed")); err != nil {
		return err
	}
	if opts.toSet && done.Left > int64(opts.to) {
		opts.note("the cache takes %s, more than %s: %s are in use", size(done.Left), size(int64(opts.to)), size(done.InUse))
	}
	return nil
}

func (opts *cacheOptions) verify(ctx context.Context, c *cache.Cache) error {
	inv, err := c.Inventory()
	if err != nil {
		return err
	}
	var total int64
	for _, f := range inv.Files {
		total += f.Local
	}
	m := opts.startMeter("verify", total)
	v, err := c.Verify(ctx, m.add)
	m.finish()
	if err != nil && ctx.Err() == nil {
		return err
	}
	if opts.json {
		err = errors.Join(printJSON(opts.out, verifiedOf(v, inv, err == nil)), err)
	} else {
		err = errors.Join(printVerified(opts.out, verifiedOf(v, inv, err == nil)), err)
	}
	switch {
	case len(v.Wrong) > 0:
		return fmt.Errorf("the cache in %s was wrong in %d places, which the next reads fetch again: %w", opts.cacheDir, len(v.Wrong), layout.ErrContent)
	case err != nil && ctx.Err() != nil:
		return m.interrupted(ctx, err, "wrong data was dropped up to that point")
	}
	return err
}
