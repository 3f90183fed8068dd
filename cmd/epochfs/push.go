package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
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

	annotations []string // K=V
	written     formatOptions
	mountFrom   string
	memory      byteSize
	dryRun      bool
	spool       bool
}

// pushMemory is the default bound of the process's memory.
const pushMemory = 256 << 20

func newPushCmd(g *globals) *cobra.Command {
	opts := pushOptions{globals: g, memory: pushMemory}
	cmd := &cobra.Command{
		Use:   "push SNAPSHOT REF",
		Short: "Export a snapshot from cocoon and upload it",
		Long: `push uploads the snapshot and prints the reference with its digest. With --input it
reads an export tar instead of asking cocoon, and SNAPSHOT can be left out. The tar
may be compressed with gzip or zstd, whatever its name.

Files are stored unchanged (format v1) by default. --zstd and --chunk select format
v2, whose chunks are not sent if the registry has them. --format packed compresses
files in small granules, and sends only those that are not in the base: the
artifact of --base, or the one that the tag names now.

Nothing is stored on disk: to restart an upload that broke off, push reads the file
again, or asks cocoon again. For standard input that needs --spool. If the registry
becomes unreachable, push waits for it as long as --read-timeout allows.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notEmpty(cmd.Flags(), "input"); err != nil {
				return err
			}
			opts.out = cmd.OutOrStdout()
			opts.reference = args[len(args)-1]
			if len(args) == 2 {
				opts.name = args[0]
			} else if opts.input == "" {
				return usagef("usage: %s", cmd.UseLine())
			}
			return endSoon(cmd.Context(), endGrace, func() error { return runPush(cmd.Context(), opts) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.input, "input", "", "upload this export tar instead of asking cocoon; - for stdin")
	f.StringVar(&opts.baseImage, "base-image", "", "the VM's base image (an annotation)")
	f.StringVar(&opts.source, "source", "", "where the snapshot comes from (an annotation)")
	f.StringVar(&opts.revision, "revision", "", "its revision there (an annotation)")
	f.StringArrayVar(&opts.annotations, "annotation", nil, "an annotation of the manifest, KEY=VALUE; may be repeated")
	opts.written.addFlags(f)
	f.StringVar(&opts.mountFrom, "mount-from", "", "repository of the same registry to mount blobs from")
	f.Var(&opts.memory, "memory", "how much memory to use")
	f.BoolVar(&opts.dryRun, "dry-run", false, "print what would be sent, and send nothing")
	f.BoolVar(&opts.spool, "spool", false, "copy standard input to a file in the cache directory, so that an upload can restart")
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
		return usagef("%s: push needs a tag; the digest depends on what is pushed", ref)
	}
	push, err := opts.push(ref)
	if err != nil {
		return err
	}
	if opts.spool {
		// The copy shares the cache's room with mounts.
		files, err := cfg.MakeCache()
		if err != nil {
			return err
		}
		defer files.Close()
		push.SpoolFile = func() (snapshot.SpoolFile, error) { return files.Spool(ctx) }
	}
	p := snapshot.Pusher{}
	var total int64
	push.Input, total, err = opts.from(&p)
	if err != nil {
		return err
	}
	reg, err := cfg.Registry(ref)
	if err != nil {
		return err
	}
	defer reg.Close()
	p.Uploader = reg
	base, err := opts.written.openBase(ctx, cfg, ref)
	if err != nil {
		return err
	}
	defer closeBase(base)
	setBase(&push, base)
	// Buffers take most of it; garbage must not take as much again.
	debug.SetMemoryLimit(push.Memory / 8 * 7)
	m := opts.startMeter("push "+ref.Repository, total)
	push.OnBytes = m.add
	result, err := p.Push(ctx, push)
	m.finish()
	if errors.Is(err, layout.ErrContent) && opts.input != "" {
		err = fmt.Errorf("%s: %w", opts.input, err)
	}
	if err != nil {
		return m.interrupted(ctx, fmt.Errorf("%s: %w", ref, err), "the tag is unchanged, and complete blobs are not sent again")
	}
	ref = ref.WithDigest(result.ManifestDigest)
	if !opts.dryRun {
		opts.inheritSet(ctx, cfg, reg, ref, base)
	}
	return opts.print(ref, result)
}

// push converts flags to the options of package snapshot.
func (opts *pushOptions) push(ref registry.Reference) (snapshot.PushOptions, error) {
	p := snapshot.PushOptions{
		Name: ref.Repository, Tag: ref.Tag, Snapshot: opts.name,
		BaseImage: opts.baseImage, Source: opts.source, Revision: opts.revision,
		Concurrency: opts.concurrency, Spool: opts.spool, DryRun: opts.dryRun,
		// The user may give the full name of the repository.
		MountFrom: strings.TrimPrefix(opts.mountFrom, ref.Host+"/"),
		Warn:      func(s string) { opts.note("%s", s) },
	}
	if err := opts.written.apply(&p); err != nil {
		return p, err
	}
	if opts.memory < 96<<20 || opts.memory > 1<<40 {
		return p, usagef("--memory must be at least 96MiB")
	}
	p.Memory = int64(opts.memory)
	for _, kv := range opts.annotations {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return p, usagef("--annotation is KEY=VALUE, not %q", kv)
		}
		if strings.HasPrefix(k, manifest.ReservedPrefix) {
			return p, usagef("--annotation %s: keys that begin with %s are reserved for cocoonstack's tools", k, manifest.ReservedPrefix)
		}
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[k] = v
	}
	return p, nil
}

// from returns the source of the push: a tar, which stays open until the
// process ends, with its size if known; or a cocoon.
func (opts *pushOptions) from(p *snapshot.Pusher) (in io.Reader, total int64, err error) {
	switch opts.input {
	case "":
		binary, err := cocoon.ResolveBinary(os.Getenv(cocoon.BinaryEnv))
		if err != nil {
			return nil, 0, fmt.Errorf("%w; --input FILE works without cocoon", err)
		}
		p.Cocoon = &cocoon.Exec{Binary: binary, Stderr: os.Stderr}
		return nil, 0, nil
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
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, err
	case st.IsDir():
		return nil, 0, usagef("%s is a directory: --input takes a tar of cocoon snapshot export", opts.input)
	case st.Mode().IsRegular():
		total = st.Size()
	}
	return f, total, nil
}

func (opts *pushOptions) print(ref registry.Reference, r *snapshot.PushResult) error {
	if opts.json {
		return printJSON(opts.out, map[string]any{
			"version": 1, "reference": ref.String(), "digest": r.ManifestDigest, "format": r.Format,
			"size": r.TotalSize, "layers": r.LayerCount, "sent": r.SentBytes, "there": r.ThereBytes, "dry_run": opts.dryRun,
		})
	}
	if opts.dryRun {
		_, err := fmt.Fprintf(opts.out, "%s: format %s, %s in %d layers; %s would be sent (%d bytes), %s exist already\n",
			ref.Host+"/"+ref.Repository, r.Format, size(r.TotalSize), r.LayerCount, size(r.SentBytes), r.SentBytes, size(r.ThereBytes))
		return err
	}
	opts.note("sent %d bytes (%s), %d bytes (%s) existed already", r.SentBytes, size(r.SentBytes), r.ThereBytes, size(r.ThereBytes))
	_, err := fmt.Fprintln(opts.out, ref)
	return err
}
