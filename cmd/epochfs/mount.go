package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/metrics"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

type mountOptions struct {
	*globals
	out        io.Writer
	reference  string
	dir        string
	foreground bool
	allowOther bool
	uid, gid   uint32
	prefetch   mounting.Prefetch

	prefetchLimit byteSize // 0: as suits the snapshot
	workingSet    string   // "" for what the registry has
	wait          waitFor
	record        string // file to record to, or ""
	recordWindow  time.Duration
	recordQuiet   time.Duration

	metrics metrics.Address
	sloppy  bool // ignore unknown mount options
	fake    bool // check, but do not mount
	noexec  bool
	timeout time.Duration // how long the mount may take to be ready; 0 for ever
	flags   *pflag.FlagSet
}

func newMountCmd(g *globals) *cobra.Command {
	opts := &mountOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Mount a snapshot on a directory",
		Long: `mount shows the snapshot's files in a directory, read-only. It returns when the
mount is ready, and leaves a process that ends with the mount. Under the name
mount.fuse.epochfs it is the helper of mount -t fuse.epochfs and /etc/fstab.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference, opts.dir, opts.flags = args[0], args[1], cmd.Flags()
			return runMount(cmd.Context(), *opts)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&opts.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVar(&opts.allowOther, "allow-other", false, "let other users access the mount")
	f.Uint32Var(&opts.uid, "uid", uint32(os.Getuid()), "owner of the files")
	f.Uint32Var(&opts.gid, "gid", uint32(os.Getgid()), "group of the files")
	opts.prefetch = mounting.PrefetchAuto
	f.Var(&opts.prefetch, "prefetch", "what to fetch before it is read: small means all files under 1 MiB, auto those and the working set, all then memory and the rest")
	f.Var(&opts.prefetchLimit, "prefetch-limit", "how much of a working set to fetch (default the smaller of 1GiB and a quarter of the data)")
	f.StringVar(&opts.workingSet, "working-set", "", "file or reference of the working set to fetch, or none (default the registry's for the snapshot)")
	f.Var(&opts.wait, "wait", "return when the working set is local")
	f.StringVar(&opts.record, "record", "", "record to this file which pages are read; no working set is fetched then")
	f.DurationVar(&opts.recordWindow, "record-window", 30*time.Second, "how long to record, from the first read on")
	f.DurationVar(&opts.recordQuiet, "record-quiet", 0, "end the recording when no new page was read for this long")
	f.Var(&opts.metrics, "metrics", "serve Prometheus metrics on this address; the host of a port alone is the loopback address")
	f.DurationVar(&opts.timeout, "mount-timeout", 0, "how long the mount may take to be ready, 0 for ever")
	f.BoolVar(&opts.sloppy, "sloppy", false, "ignore unknown mount options")
	f.BoolVar(&opts.fake, "fake", false, "check, but do not mount")
	f.BoolVar(&opts.noexec, "noexec", false, "do not allow running programs from the mount")
	for _, name := range contextOptions {
		f.String(name, "", "SELinux "+name)
		f.Lookup(name).Hidden = true
	}
	f.VarP(&optionList{flags: f, sloppy: &opts.sloppy}, "options", "o", "mount options, named like the flags")
	for _, name := range []string{"sloppy", "fake", "noexec", "record-quiet"} {
		f.Lookup(name).Hidden = true
	}
	return cmd
}

func runMount(ctx context.Context, opts mountOptions) error {
	link, err := keeper.Join()
	if err != nil {
		return err
	}
	pipe := readyPipe(link)
	err = opts.mount(ctx, link, pipe)
	if pipe != nil && err != nil {
		return pipe.failed(err)
	}
	return err
}

// mount mounts and serves in this process. link leads to the process that
// keeps the mount's state, or is nil; pipe leads to the process that waits
// for the mount to be ready, or is nil.
func (opts *mountOptions) mount(ctx context.Context, link *keeper.Link, pipe *readiness) error {
	if kept, ok := inherited(link); ok {
		if err := opts.takeOver(ctx, link, kept); err != nil {
			// Other codes mean that nothing is mounted yet and that a retry
			// may help, which the unit does.
			return &exitError{message(err), exitFailed}
		}
		return nil
	}
	var err error
	if opts.dir, err = opts.checkMountpoint(opts.dir); err != nil {
		return err
	}
	cfg, err := opts.parse()
	if err != nil {
		return err
	}
	if err := opts.checkOutside(cfg.CacheDir, cfg.HostsDirs); err != nil {
		return err
	}
	if opts.timeout < 0 {
		return usagef("--mount-timeout cannot be negative")
	}
	opts.log = opts.log.With("mount", opts.dir)
	if link == nil {
		opts.noteHidden()
		opts.notePowerless()
	}
	switch {
	case opts.fake:
		return nil
	case link != nil:
		return opts.serve(ctx, link, pipe)
	case !opts.foreground:
		return opts.startBehind(ctx)
	}
	start, err := opts.keeperStart()
	if err != nil {
		return err
	}
	return start.Become()
}

// parse refuses an invalid reference before a process is started for it.
func (opts *mountOptions) parse() (mounting.Config, error) {
	cfg, err := opts.config(0)
	if err == nil {
		_, err = cfg.Reference(opts.reference)
	}
	if err == nil {
		err = opts.checkHints(&cfg)
	}
	return cfg, err
}

// checkMountpoint returns the directory's path, if it can be mounted on. It
// unmounts a dead mount of epochfs.
func (opts *mountOptions) checkMountpoint(name string) (string, error) {
	if fs.Stale(name) {
		if err := fs.CleanStale(name); err != nil {
			return "", err
		}
		opts.note("unmounted a dead mount on %s", name)
	}
	dir, err := realPath(name)
	if errors.Is(err, errNotFound) {
		return "", fmt.Errorf("%w: create it with mkdir", err)
	}
	if err != nil {
		return "", err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", fmt.Errorf("%s is not a directory", dir)
	}
	there, err := mounts.Find(dir)
	if err != nil {
		return "", err
	}
	if there != nil && there.Ours() {
		return "", fmt.Errorf("%s is already a mount of %s: unmount it with epochfs umount %s", dir, there.Source, dir)
	}
	return dir, nil
}

// checkOutside refuses paths of this process's files that the mount would
// hide: opening one of them would wait for this very process.
func (opts *mountOptions) checkOutside(cacheDir string, hostsDirs []string) error {
	for _, path := range slices.Concat([]string{cacheDir, opts.logFile, opts.record, control.Dir()}, hostsDirs) {
		if path == "" {
			continue
		}
		at, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		for at != "/" {
			real, err := filepath.EvalSymlinks(at)
			if err == nil && (real == opts.dir || strings.HasPrefix(real, opts.dir+"/")) {
				return usagef("%s is behind the mount on %s", path, opts.dir)
			}
			if err == nil {
				break
			}
			at = filepath.Dir(at)
		}
	}
	return nil
}

// noteHidden prints that the contents of a directory are hidden while it is
// mounted on.
func (opts *mountOptions) noteHidden() {
	f, err := os.Open(opts.dir)
	if err != nil {
		return
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		opts.note("%s is not empty: the mount hides its contents", opts.dir)
	}
}

// realPath returns a directory's path as in the kernel's table of mounts.
func realPath(name string) (string, error) {
	dir, err := filepath.Abs(name)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	return dir, notThere(name, err)
}

// notThere returns an error about a missing directory that the user has
// named.
func notThere(name string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("directory %s: %w", name, errNotFound)
	}
	return err
}

// serve mounts and serves until the mount is gone. It reports on pipe that
// the mount is ready, or on stdout if pipe is nil.
func (opts *mountOptions) serve(ctx context.Context, link *keeper.Link, pipe *readiness) (err error) {
	signals := opts.prepareToServe()
	defer signal.Stop(signals)
	scrapes, err := metrics.Listen(opts.metrics)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scrapes.Close()) }()
	o, err := opts.openInTime(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	look := opts.look()
	look.Since = time.Now()
	h := &hints{opts: opts, o: o}
	if opts.record != "" {
		if h.recording, err = newRecording(o.Artifact, opts.record, opts.recordWindow, opts.recordQuiet); err != nil {
			return err
		}
		look.Record = h.recording.touch
	}
	m, err := o.Mount(opts.dir, look)
	if err != nil {
		return err
	}
	defer m.Wait()
	h.m = m
	s := &served{opts: opts, link: link, o: o, m: m, hints: h, since: look.Since, scrapes: scrapes}
	s.keep()
	var line strings.Builder
	if err := opts.printMounted(&line, s); err != nil {
		return errors.Join(err, fs.Unmount(opts.dir, true))
	}
	closeSocket := s.answerStatus()
	defer closeSocket()
	if pipe == nil {
		_, err = io.WriteString(opts.out, line.String())
	} else {
		opts.logs.Detach()
		err = pipe.ready(line.String(), opts.logFile)
	}
	if err != nil { // no process waits any more
		return errors.Join(err, fs.Unmount(opts.dir, true))
	}
	s.run(signals)
	return nil
}

// openInTime opens the reference while the mount may still become ready.
func (opts *mountOptions) openInTime(ctx context.Context) (*mounting.Opened, error) {
	if opts.timeout == 0 {
		return opts.open(ctx, opts.reference, 0)
	}
	within, cancel := context.WithTimeout(ctx, opts.timeout)
	defer cancel()
	o, err := opts.open(within, opts.reference, 0)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		err = &exitError{fmt.Sprintf("not ready within %s, the --mount-timeout: %s", opts.timeout, message(err)), exitUnreachable}
	}
	return o, err
}

// mounted is the JSON output.
type mounted struct {
	Version   int    `json:"version"`
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	Dir       string `json:"dir"`
	DirBytes  []byte `json:"dir_bytes,omitempty"`
	PID       int    `json:"pid"`
	KeeperPID int    `json:"keeper_pid"`
	Files     int    `json:"files"`
	Size      int64  `json:"size"`
	Data      int64  `json:"data"`
	Local     int64  `json:"local"`
}

func (opts *mountOptions) printMounted(w io.Writer, s *served) error {
	o := s.o
	sum, err := o.Sizes()
	if err != nil {
		return err
	}
	files, err := list(o, "")
	if err != nil {
		return err
	}
	if opts.json {
		return printJSON(w, mounted{
			Version: 1, Reference: o.Reference.String(), Digest: o.Artifact.Digest, Dir: opts.dir, DirBytes: control.Bytes(opts.dir), PID: os.Getpid(), KeeperPID: s.keeperPID(),
			Files: len(files), Size: sum.Apparent, Data: sum.Data, Local: sum.Local,
		})
	}
	if opts.quiet {
		return nil
	}
	_, err = fmt.Fprintf(w, "%s: %d files, %s, %s of data, %s of it local\n",
		o.Reference, len(files), size(sum.Apparent), size(sum.Data), size(sum.Local))
	return err
}
