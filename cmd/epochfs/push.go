package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
)

type pushOptions struct {
	*globals
	out       io.Writer
	name      string // of the snapshot in cocoon; "" with input
	reference string
	input     string // an export tar, "-" for stdin
	baseImage string
	source    string
	revision  string
}

func newPushCmd(g *globals) *cobra.Command {
	opts := pushOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "push SNAPSHOT REF",
		Short: "Export a snapshot from cocoon and upload it",
		Long: `push uploads the snapshot and prints the reference with its digest. With
--input an export tar takes the place of cocoon, and SNAPSHOT can be left out.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference = args[len(args)-1]
			if len(args) == 2 {
				opts.name = args[0]
			} else if opts.input == "" {
				return usagef("usage: %s", cmd.UseLine())
			}
			return runPush(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.input, "input", "", "upload this export tar, - for stdin, and leave cocoon alone")
	f.StringVar(&opts.baseImage, "base-image", "", "the image the VM began with (an annotation)")
	f.StringVar(&opts.source, "source", "", "where the snapshot comes from (an annotation)")
	f.StringVar(&opts.revision, "revision", "", "its revision there (an annotation)")
	return cmd
}

func runPush(ctx context.Context, opts pushOptions) error {
	cfg, err := opts.config(readTimeout)
	if err != nil {
		return err
	}
	ref, err := cfg.Reference(opts.reference)
	if err != nil {
		return err
	}
	if ref.Digest != "" {
		return usagef("%s: push names a tag, the digest comes of what is pushed", ref)
	}
	p := snapshot.Pusher{}
	in, total, err := opts.from(&p)
	if err != nil {
		return err
	}
	reg, err := cfg.Registry(ref)
	if err != nil {
		return err
	}
	defer reg.Close()
	p.Uploader = reg
	m := opts.startMeter("push "+ref.Repository, total)
	result, err := p.Push(ctx, snapshot.PushOptions{
		Name: ref.Repository, Tag: ref.Tag, Snapshot: opts.name, Input: in,
		BaseImage: opts.baseImage, Source: opts.source, Revision: opts.revision,
		OnBytes: m.add, Warn: func(s string) { opts.note("%s", s) },
	})
	m.finish()
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return opts.print(ref.WithDigest(result.ManifestDigest), result)
}

// from finds what is to be pushed: a tar, whose size is told where it is
// known and which stays open until the process ends, or a cocoon.
func (opts *pushOptions) from(p *snapshot.Pusher) (in io.Reader, total int64, err error) {
	switch opts.input {
	case "":
		binary, err := cocoon.ResolveBinary(os.Getenv(cocoon.BinaryEnv))
		p.Cocoon = &cocoon.Exec{Binary: binary, Stderr: os.Stderr}
		return nil, 0, err
	case "-":
		return os.Stdin, 0, nil
	}
	f, err := os.Open(opts.input)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s: %w", opts.input, errNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		total = st.Size()
	}
	return f, total, nil
}

func (opts *pushOptions) print(ref registry.Reference, r *snapshot.PushResult) error {
	if opts.json {
		return printJSON(opts.out, map[string]any{
			"version": 1, "reference": ref.String(), "digest": r.ManifestDigest,
			"size": r.TotalSize, "layers": r.LayerCount,
		})
	}
	_, err := fmt.Fprintln(opts.out, ref)
	return err
}
