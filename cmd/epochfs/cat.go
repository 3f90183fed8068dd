package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

type catOptions struct {
	*globals
	out       io.Writer
	reference string
	file      string
	offset    int64
	length    int64 // -1 for all
	base      string
	raw       bool
	output    string // "" and "-" for stdout
}

func newCatCmd(g *globals) *cobra.Command {
	opts := catOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "cat REF FILE",
		Short: "Write a snapshot's file, or a file in one of its disks, to stdout",
		Long: `cat writes a snapshot's file to stdout, without a mount. FILE may be a path in a
disk: DISK:/path, or DISK:VOLUME:/path if the disk has several file systems (see
epochfs fs). Symbolic links are followed within the guest's file system.

With --raw, cat writes a disk as a raw image, whatever its format; with -o, as a
sparse file.`,
		Example: `  epochfs cat registry.example/team/vm:v1 config.json
  epochfs cat registry.example/team/vm:v1 cow.raw:/upper/etc/hostname
  epochfs cat registry.example/team/vm:v1 overlay.qcow2:p1:/etc/fstab --base registry.example/images/debian:13
  epochfs cat --raw -o disk.raw registry.example/team/vm:v1 overlay.qcow2`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: g.completeFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference, opts.file = args[0], args[1]
			if opts.offset < 0 || cmd.Flags().Changed("length") && opts.length < 0 {
				return usagef("--offset and --length cannot be negative")
			}
			if err := notEmpty(cmd.Flags(), "output", "base"); err != nil {
				return err
			}
			if opts.output != "" && !opts.raw {
				return usagef("-o is for --raw; epochfs cp copies files into a directory")
			}
			return runCat(cmd.Context(), opts)
		},
	}
	cmd.Flags().Int64Var(&opts.offset, "offset", 0, "start at this byte")
	cmd.Flags().Int64Var(&opts.length, "length", -1, "write at most this many bytes (default to the end)")
	cmd.Flags().StringVar(&opts.base, "base", "", baseUsage)
	cmd.Flags().BoolVar(&opts.raw, "raw", false, "write a disk as a raw image, even if it is qcow2")
	cmd.Flags().StringVarP(&opts.output, "output", "o", "", "with --raw, write to this sparse file; - for stdout")
	return cmd
}

func runCat(ctx context.Context, opts catOptions) error {
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	file, a, err := find(o, opts.file)
	if err != nil {
		return err
	}
	switch _, isDisk := diskFormat(file.file); {
	case opts.raw && (a.path != "" || !isDisk):
		return usagef("--raw is for disks, and %s is none", a)
	case opts.raw:
		return runCatRaw(ctx, opts, o, file)
	case a.path != "":
		return runCatInside(ctx, opts, o, file.file, a)
	case opts.base != "":
		return usagef("--base is for --raw and for paths in a disk, such as overlay.qcow2:/etc")
	}
	return opts.write(ctx, o, file)
}

// write writes a file of the snapshot to stdout.
func (opts *catOptions) write(ctx context.Context, o *mounting.Opened, file shown) error {
	src, err := readerOf(ctx, o, file)
	if err != nil {
		return err
	}
	left := max(file.size-opts.offset, 0)
	if opts.length >= 0 {
		left = min(left, opts.length)
	}
	m := opts.meter(left)
	err = copyRange(counting{opts.out, m.add}, src, opts.offset, left)
	m.finish()
	if f := file.file; err == nil && f != nil && left == file.size {
		err = settle(ctx, o, f)
	}
	if err != nil {
		return m.interrupted(ctx, fmt.Errorf("%s: %s: %w", o.Reference, opts.file, err), "fetched data stays in the cache")
	}
	return nil
}

// meter shows progress, unless the file itself goes to the same terminal.
func (opts *catOptions) meter(total int64) *meter {
	g := *opts.globals
	f, ok := opts.out.(*os.File)
	g.quiet = g.quiet || ok && term.IsTerminal(int(f.Fd()))
	return g.startMeter("cat "+opts.file, total)
}

// settle verifies a file that was read to its end, if only the digest of all
// of it can vouch for its bytes.
func settle(ctx context.Context, o *mounting.Opened, f *layout.File) error {
	open, err := o.File(f)
	if err != nil {
		return err
	}
	return open.Settle(ctx)
}

// readerOf returns a reader of a file as a mount would show it.
func readerOf(ctx context.Context, o *mounting.Opened, f shown) (io.ReaderAt, error) {
	if f.file == nil {
		return bytes.NewReader(f.text), nil
	}
	open, err := o.File(f.file)
	if err != nil {
		return nil, err
	}
	return readerAt(func(p []byte, off int64) (int, error) { return open.ReadAt(ctx, p, off) }), nil
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// copyRange writes n bytes from offset off, which lie within the file, in
// small steps, so that the reader of a pipe does not wait long.
func copyRange(w io.Writer, src io.ReaderAt, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if got, err := src.ReadAt(p, off); got < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return nil
}
