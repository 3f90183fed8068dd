package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/whole"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

type materializeOptions struct {
	*globals
	out         io.Writer
	reference   string
	name        string
	nameSet     bool // whether --name was set
	description string
	output      string // "-" for stdout
	dir         string
	keep        bool
	memory      byteSize
}

// materializeMemory is the default bound of the process's memory.
const materializeMemory = 256 << 20

func newMaterializeCmd(g *globals) *cobra.Command {
	opts := materializeOptions{globals: g, memory: materializeMemory}
	var noCache bool // for scripts from when it was not the default
	cmd := &cobra.Command{
		Use:   "materialize REF",
		Short: "Import a snapshot into cocoon, or write it as a tar or a directory",
		Long: `materialize streams the snapshot into "cocoon snapshot import". With -o it writes
the tar that cocoon would export, and with --to-dir a directory of sparse files for
"cocoon vm clone --from-dir". A cloud image goes to "cocoon image import", or with
-o to a file.

Data in the cache is not fetched. Fetched data is not stored, unless --keep is
given: then an interrupted run continues where it stopped, and mounts can use the
data too.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference = args[0]
			if err := notEmpty(cmd.Flags(), "name", "output", "to-dir"); err != nil {
				return err
			}
			if noCache && opts.keep {
				return usagef("--keep and --no-cache exclude each other")
			}
			opts.nameSet = cmd.Flags().Changed("name")
			if err := opts.check(); err != nil {
				return err
			}
			return endSoon(cmd.Context(), endGrace, func() error { return runMaterialize(cmd.Context(), opts) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.name, "name", "", "name in cocoon (default the last part of the repository's path; with --to-dir the snapshot's)")
	f.StringVar(&opts.description, "description", "", "description in cocoon (default the snapshot's)")
	f.StringVarP(&opts.output, "output", "o", "", "write a tar to this file instead of importing it; - for stdout")
	f.StringVar(&opts.dir, "to-dir", "", "make this directory of sparse files instead of importing them")
	f.BoolVar(&opts.keep, "keep", false, "store fetched data in the cache")
	f.BoolVar(&noCache, "no-cache", false, "store nothing, which is the default")
	_ = f.MarkHidden("no-cache") // fails for an unknown flag
	f.Var(&opts.memory, "memory", "how much memory to use")
	return cmd
}

// check returns an error for flags that contradict each other, and for what
// can be found wrong without the network.
func (opts *materializeOptions) check() error {
	switch {
	case opts.memory < mounting.LeastMemory:
		return usagef("--memory must be at least %s", size(mounting.LeastMemory))
	case opts.output != "" && opts.dir != "":
		return usagef("--output and --to-dir exclude each other")
	case strings.HasSuffix(opts.output, "/"):
		return usagef("%s is a directory: -o writes a file; --to-dir makes a directory", opts.output)
	case opts.dir == "":
		return nil
	}
	err := snapshot.CheckDir(opts.dir)
	switch {
	case errors.Is(err, snapshot.ErrNotEmpty):
		return fmt.Errorf("%w: name an empty one, or one that does not exist", err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s is a file: --to-dir makes a directory, -o writes a tar", opts.dir)
	}
	return cannotWrite(opts.dir, err)
}

func runMaterialize(ctx context.Context, opts materializeOptions) error {
	var runner *cocoon.Exec
	if opts.output == "" && opts.dir == "" { // before the first request
		binary, err := cocoon.ResolveBinary(os.Getenv(cocoon.BinaryEnv))
		if err != nil {
			return fmt.Errorf("%w; -o FILE and --to-dir DIR work without cocoon", err)
		}
		runner = &cocoon.Exec{Binary: binary, Stderr: os.Stderr}
	}
	debug.SetMemoryLimit(int64(opts.memory) * 7 / 8) // the collector does not count the rest
	o, err := opts.openWith(ctx, opts.reference, readTimeout, func(cfg *mounting.Config) {
		cfg.OnlyRead, cfg.Memory = !opts.keep, int64(opts.memory)
	})
	if err != nil {
		return err
	}
	defer o.Close()
	if opts.name == "" {
		opts.name = path.Base(o.Reference.Repository)
	}
	switch {
	case opts.dir != "":
		err = opts.intoDir(ctx, o)
	case opts.output == "-":
		err = opts.write(ctx, o, os.Stdout)
	case opts.output != "":
		err = opts.writeFile(ctx, o)
	default:
		err = opts.intoCocoon(ctx, o, runner)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", o.Reference, err)
	}
	return nil
}

// write writes the artifact in the form that cocoon imports: a tar, or a
// disk.
func (opts *materializeOptions) write(ctx context.Context, o *mounting.Opened, w io.Writer) error {
	m, err := opts.meter(o)
	if err != nil {
		return err
	}
	if o.Artifact.Kind == manifest.KindCloudImage {
		err = writeImage(ctx, o, w, m.add)
	} else {
		err = o.Artifact.WriteTar(ctx, w, o, opts.tarOptions(m))
	}
	return opts.ended(ctx, m, err, "written")
}

// meter starts showing progress.
func (opts *materializeOptions) meter(o *mounting.Opened) (*meter, error) {
	sum, err := o.Sizes()
	if err != nil {
		return nil, err
	}
	return opts.startLocalMeter("materialize "+o.Reference.Repository, sum.Data, sum.Local), nil
}

// ended removes the meter and reports what was done.
func (opts *materializeOptions) ended(ctx context.Context, m *meter, err error, format string, args ...any) error {
	m.finish()
	if err == nil {
		opts.note("%s: %s", fmt.Sprintf(format, args...), m.summary())
		return nil
	}
	left := "nothing was stored"
	if opts.keep {
		left = "fetched data stays in the cache"
	}
	return m.interrupted(ctx, err, left)
}

// intoDir makes a directory of plain files.
func (opts *materializeOptions) intoDir(ctx context.Context, o *mounting.Opened) error {
	if o.Artifact.Kind == manifest.KindCloudImage {
		return usagef("a cloud image is one disk: write it with -o FILE")
	}
	m, err := opts.meter(o)
	if err != nil {
		return err
	}
	dir := snapshot.DirOptions{Description: opts.description, OnBytes: m.add}
	if opts.nameSet {
		dir.LocalName = opts.name
	}
	err = o.Artifact.WriteDir(ctx, opts.dir, o, dir)
	return opts.ended(ctx, m, err, "made %s", opts.dir)
}

func (opts *materializeOptions) tarOptions(m *meter) snapshot.TarOptions {
	return snapshot.TarOptions{LocalName: opts.name, Description: opts.description, OnBytes: m.add}
}

// writeFile writes the output file, or the target of the symbolic link with
// its name. A regular file appears complete or not at all, and only its
// owner may read it, because a guest's memory holds secrets. A device, a
// pipe or an open file's link in /proc is written to in place.
func (opts *materializeOptions) writeFile(ctx context.Context, o *mounting.Opened) error {
	target, err := whole.Follow(opts.output)
	if err != nil {
		return cannotWrite(opts.output, err)
	}
	if st, err := os.Lstat(target); err == nil && !st.Mode().IsRegular() {
		flags := os.O_WRONLY
		if st, err := os.Stat(target); err == nil && st.Mode().IsRegular() {
			flags |= os.O_APPEND // as with the shell's >>; with > the file is empty
		}
		f, err := os.OpenFile(target, flags, 0)
		if err != nil {
			return cannotWrite(opts.output, err)
		}
		return errors.Join(opts.write(ctx, o, f), f.Close())
	}
	f, err := whole.Create(opts.output)
	if err != nil {
		return cannotWrite(opts.output, err)
	}
	defer f.Close()
	if err := opts.write(ctx, o, f); err != nil {
		return err
	}
	return cannotWrite(opts.output, f.Commit())
}

// intoCocoon imports the artifact under opts.name, completely or not at all.
func (opts *materializeOptions) intoCocoon(ctx context.Context, o *mounting.Opened, runner *cocoon.Exec) error {
	if o.Artifact.Kind == manifest.KindCloudImage {
		return opts.imageIntoCocoon(ctx, o, runner)
	}
	if err := runner.CheckFree(ctx, opts.name); err != nil {
		return err
	}
	m, err := opts.meter(o)
	if err != nil {
		return err
	}
	err = o.Artifact.Import(ctx, runner, o, opts.tarOptions(m))
	return opts.ended(ctx, m, err, "imported into cocoon as %s", opts.name)
}

// imageIntoCocoon imports a disk. Cocoon would take a truncated stream for a
// disk, so it is killed on error.
func (opts *materializeOptions) imageIntoCocoon(ctx context.Context, o *mounting.Opened, runner *cocoon.Exec) error {
	running, end := context.WithCancel(ctx)
	defer end()
	w, wait, err := runner.ImageImport(running, opts.name)
	if err != nil {
		return err
	}
	if l, ok := w.(cocoon.Listener); ok {
		go func() {
			<-l.Gone()
			end()
		}()
	}
	if err := opts.write(running, o, w); err != nil {
		gone := running.Err() != nil && ctx.Err() == nil || errors.Is(err, syscall.EPIPE)
		end()
		if cocoonErr := wait(); gone { // cocoon ended first
			return cocoonErr
		}
		return err
	}
	if err := errors.Join(w.Close(), wait()); err != nil {
		return err
	}
	opts.note("imported into cocoon as image %s", opts.name)
	return nil
}

// writeImage writes a cloud image's disk. It withholds the last byte until
// everything is verified.
func writeImage(ctx context.Context, o *mounting.Opened, w io.Writer, onBytes func(int64)) error {
	f := o.Artifact.Files[0]
	payload, err := o.OpenPayload(ctx, f)
	if err != nil {
		return err
	}
	defer payload.Close()
	src := bufio.NewReaderSize(payload, 1<<20)
	if n := f.PayloadSize() - 1; n > 0 {
		if _, err := io.CopyN(counting{w, onBytes}, src, n); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	last, err := io.ReadAll(src)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	_, err = w.Write(last)
	return err
}

// counting counts the bytes written.
type counting struct {
	io.Writer
	count func(int64)
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.count(int64(n))
	return n, err
}
