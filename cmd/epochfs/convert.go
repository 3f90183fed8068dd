package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

type convertOptions struct {
	*globals
	out       io.Writer
	src, dst  string
	written   formatOptions
	mountFrom string
	memory    byteSize
	dryRun    bool
}

func newConvertCmd(g *globals) *cobra.Command {
	opts := convertOptions{globals: g, memory: pushMemory}
	cmd := &cobra.Command{
		Use:   "convert SRC DST",
		Short: "Write a snapshot in another format",
		Long: `convert reads the snapshot SRC from its registry and writes it to DST in another
format. No information is lost: converting back gives the same files. Nothing is
stored on disk. Blobs that DST's registry has are not sent, so an interrupted
convert continues where it stopped.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.src, opts.dst = args[0], args[1]
			return runConvert(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	opts.written.addFlags(f)
	f.StringVar(&opts.mountFrom, "mount-from", "", "repository of DST's registry to mount blobs from")
	f.Var(&opts.memory, "memory", "how much memory to use")
	f.BoolVar(&opts.dryRun, "dry-run", false, "print what would be sent, and send nothing")
	return cmd
}

func runConvert(ctx context.Context, opts convertOptions) error {
	cfg, err := opts.config(readTimeout)
	if err != nil {
		return err
	}
	ref, err := cfg.Reference(opts.dst)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return usagef("%s: convert needs a tag; the digest depends on what is written", ref)
	}
	push := snapshot.PushOptions{
		Name: ref.Repository, Tag: ref.Tag, Concurrency: opts.concurrency, DryRun: opts.dryRun,
		Memory: int64(opts.memory) / 2, MountFrom: strings.TrimPrefix(opts.mountFrom, ref.Host+"/"),
		Warn: func(s string) { opts.note("%s", s) },
	}
	if err := opts.written.apply(&push); err != nil {
		return err
	}
	if opts.memory < 2*96<<20 || opts.memory > 1<<40 {
		return usagef("--memory must be at least 192MiB")
	}
	src, err := opts.openWith(ctx, opts.src, readTimeout, func(cfg *mounting.Config) {
		cfg.NoCache, cfg.Memory = true, int64(opts.memory)/2
	})
	if err != nil {
		return err
	}
	defer src.Close()
	if src.Artifact.Kind == manifest.KindCloudImage {
		return usagef("%s is a cloud image: only snapshots have several formats", src.Reference)
	}
	keepAnnotations(&push, src.Artifact)
	push.Artifact, push.Payloads = src.Artifact, src
	base, err := opts.written.openBase(ctx, cfg, ref)
	if err != nil {
		return err
	}
	defer closeBase(base)
	setBase(&push, base)
	reg, err := cfg.Registry(ref)
	if err != nil {
		return err
	}
	defer reg.Close()
	debug.SetMemoryLimit(int64(opts.memory) / 8 * 7)
	sizes, err := src.Sizes()
	if err != nil {
		return err
	}
	m := opts.startMeter("convert "+src.Reference.Repository, sizes.Data)
	push.OnBytes = m.add
	result, err := (&snapshot.Pusher{Uploader: reg}).Push(ctx, push)
	m.finish()
	if err != nil {
		return m.interrupted(ctx, fmt.Errorf("%s to %s: %w", src.Reference, ref, err), "the tag is unchanged, and complete blobs are not sent again")
	}
	if !opts.dryRun {
		opts.inheritSet(ctx, cfg, reg, ref.WithDigest(result.ManifestDigest), src, base)
	}
	done := pushOptions{globals: opts.globals, out: opts.out, dryRun: opts.dryRun}
	return done.print(ref.WithDigest(result.ManifestDigest), result)
}

// keepAnnotations copies an artifact's annotations and creation time.
func keepAnnotations(p *snapshot.PushOptions, a *snapshot.Artifact) {
	p.Annotations = map[string]string{}
	for k, v := range a.Manifest.Annotations {
		p.Annotations[k] = v
	}
	p.Created = a.Created
}
