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
		Short: "Look at the cache, make room in it, check it",
		Long: `cache looks at the directory in which what was fetched is kept. It works beside
live mounts: what they have open is never removed.`,
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
					return usagef("say what is to go: --older, --to or --all")
				}
				return opts.with(cmd.Context(), run)
			},
		}
		root.AddCommand(cmd)
		return cmd
	}
	add("ls", "List what the cache holds, by reference and file", "", (*cacheOptions).ls)
	add("du", "Sum up what the cache takes, by reference", "", (*cacheOptions).du)
	prune := add("prune", "Remove files that no mount uses", `prune removes whole files that nobody has open: those not used for as long as
--older says, the least recently used until the cache takes no more than --to, or
--all of them; and then what it keeps of artifacts of which no file is left.`, (*cacheOptions).prune)
	f := prune.Flags()
	f.Var(&opts.older, "older", "what was not used for this long, such as 7d or 12h")
	f.Var(&opts.to, "to", "the least recently used, until the cache takes this much, such as 20GiB")
	f.BoolVar(&opts.all, "all", false, "all that is not in use")
	f.BoolVar(&opts.dryRun, "dry-run", false, "remove nothing, tell what would be removed")
	add("verify", "Read all of the cache and compare it with digests and checksums", `verify reads everything that is there. What is not as it was kept is marked
missing, so that it is fetched again when somebody reads it, and the exit code
is 6.`, (*cacheOptions).verify)
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
		return errors.Join(printJSON(opts.out, out), m.interrupted(ctx, err, "the rest is there"))
	}
	if err := errors.Join(printPruned(opts.out, out), m.interrupted(ctx, err, "the rest is there")); err != nil {
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
		return fmt.Errorf("the cache in %s was wrong in %d places, which will be fetched again when they are read: %w", opts.cacheDir, len(v.Wrong), layout.ErrContent)
	case err != nil && ctx.Err() != nil:
		return m.interrupted(ctx, err, "what is wrong was dropped as far as that")
	}
	return err
}
