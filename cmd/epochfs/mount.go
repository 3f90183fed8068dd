package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
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
	metrics    metrics.Address
	sloppy     bool // ignore mount options nobody knows
	fake       bool // check, but do not mount
}

func newMountCmd(g *globals) *cobra.Command {
	opts := &mountOptions{globals: g}
	cmd := &cobra.Command{
		Use:   "mount REF DIR",
		Short: "Mount a snapshot on a directory",
		Long: `mount shows the snapshot's files in a directory, read-only. It returns when the
directory is ready; a process stays behind and ends with the mount. Called as
mount.fuse.epochfs it is what mount -t fuse.epochfs and /etc/fstab run.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.out = cmd.OutOrStdout()
			opts.reference, opts.dir = args[0], args[1]
			return runMount(cmd.Context(), *opts)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&opts.foreground, "foreground", "f", false, "stay in the foreground")
	f.BoolVar(&opts.allowOther, "allow-other", false, "let other users look too")
	f.Uint32Var(&opts.uid, "uid", uint32(os.Getuid()), "owner of the files")
	f.Uint32Var(&opts.gid, "gid", uint32(os.Getgid()), "group of the files")
	opts.prefetch = mounting.PrefetchSmall
	f.Var(&opts.prefetch, "prefetch", "what to fetch before somebody reads it: small is all files under 1 MiB")
	f.Var(&opts.metrics, "metrics", "serve Prometheus metrics on this address; a port alone is one of the loopback address")
	f.BoolVar(&opts.sloppy, "sloppy", false, "ignore mount options nobody knows")
	f.BoolVar(&opts.fake, "fake", false, "check, but do not mount")
	f.VarP(&optionList{flags: f, sloppy: &opts.sloppy}, "options", "o", "mount options, named as the flags are")
	for _, name := range []string{"sloppy", "fake"} {
		f.Lookup(name).Hidden = true
	}
	return cmd
}

func runMount(ctx context.Context, opts mountOptions) error {
	pipe := readyPipe()
	err := opts.mount(ctx, pipe)
	if pipe != nil && err != nil {
		return pipe.failed(err)
	}
	return err
}

func (opts *mountOptions) mount(ctx context.Context, pipe *readiness) error {
	var err error
	if opts.dir, err = opts.checkMountpoint(opts.dir); err != nil {
		return err
	}
	if _, err := opts.parse(); err != nil {
		return err
	}
	opts.log = opts.log.With("mount", opts.dir)
	switch {
	case opts.fake:
		return nil
	case pipe == nil && !opts.foreground:
		return startBehind(ctx, opts.out)
	}
	return opts.serve(ctx, pipe)
}

// parse refuses a reference that cannot be one before a process is
// started for it.
func (opts *mountOptions) parse() (mounting.Config, error) {
	cfg, err := opts.config(0)
	if err == nil {
		_, err = cfg.Reference(opts.reference)
	}
	return cfg, err
}

// checkMountpoint returns the directory's path, if a mount can go there.
// What a dead process of ours has left there is taken away.
func (opts *mountOptions) checkMountpoint(name string) (string, error) {
	if fs.Stale(name) {
		if err := fs.CleanStale(name); err != nil {
			return "", err
		}
		opts.note("cleaned up on %s after a mount that had lost its process", name)
	}
	dir, err := realPath(name)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !st.IsDir() {
		return "", fmt.Errorf("mountpoint %s is not a directory", dir)
	}
	there, err := mounts.Find(dir)
	if err != nil {
		return "", err
	}
	if there != nil && there.Ours() {
		return "", fmt.Errorf("%s is a mount of %s already", dir, there.Source)
	}
	return dir, nil
}

// realPath is a directory's path as the kernel lists it.
func realPath(name string) (string, error) {
	dir, err := filepath.Abs(name)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("directory %s: %w", name, errNotFound)
	}
	return dir, err
}

// serve mounts and stays until the mount is gone. Who waits for the mount
// to be ready is told by pipe; without one, by stdout.
func (opts *mountOptions) serve(ctx context.Context, pipe *readiness) (err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	spareFromOOM(opts.log)
	boundMemory(os.Getenv)
	scrapes, err := metrics.Listen(opts.metrics)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scrapes.Close()) }()
	o, err := opts.open(ctx, opts.reference, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	m, err := o.Mount(opts.dir, mounting.MountOptions{
		AllowOther: opts.allowOther, UID: opts.uid, GID: opts.gid, Log: opts.log,
	})
	if err != nil {
		return err
	}
	defer m.Wait()
	since := time.Now()
	status := func() control.Mount {
		st := o.Status(m, since)
		st.Metrics = scrapes.Addr()
		return st
	}
	scrapes.Serve(buildVersion(), status)
	// Without its socket a mount is as good, but cannot be asked.
	socket, sockErr := control.Serve(control.Dir(), status)
	if sockErr != nil {
		opts.log.Warn("epochfs status will not tell much of this mount", "error", sockErr)
	} else {
		defer func() { err = errors.Join(err, socket.Close()) }()
	}
	var line strings.Builder
	if err := opts.printMounted(&line, o); err != nil {
		return errors.Join(err, fs.Unmount(opts.dir, true))
	}
	if pipe == nil {
		_, err = io.WriteString(opts.out, line.String())
	} else {
		opts.logs.Detach()
		err = pipe.ready(line.String(), opts.logFile)
	}
	if err != nil { // nobody is there to be told: nobody wants the mount
		return errors.Join(err, fs.Unmount(opts.dir, true))
	}
	if err := o.Prefetch(opts.prefetch); err != nil {
		opts.log.Warn("nothing is prefetched", "cause", err)
	}
	opts.untilGone(signals, m)
	return nil
}

// mounted is the JSON output.
type mounted struct {
	Version   int    `json:"version"`
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	Dir       string `json:"dir"`
	PID       int    `json:"pid"`
	Files     int    `json:"files"`
	Size      int64  `json:"size"`
	Data      int64  `json:"data"`
	Local     int64  `json:"local"`
}

func (opts *mountOptions) printMounted(w io.Writer, o *mounting.Opened) error {
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
			Version: 1, Reference: o.Reference.String(), Digest: o.Artifact.Digest, Dir: opts.dir, PID: os.Getpid(),
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

// untilGone returns when the mount has ended. A signal asks for that, and
// is not obeyed while somebody uses the mount; a second one takes the mount
// out of the tree all the same, and its users keep what they have open.
func (opts *mountOptions) untilGone(signals <-chan os.Signal, m *fs.Mounted) {
	for asked := 0; ; {
		select {
		case <-m.Done():
			return
		case <-signals:
			asked++
		}
		err := m.Unmount()
		if errors.Is(err, syscall.EBUSY) && asked > 1 {
			err = fs.Unmount(opts.dir, true)
			opts.note("%s is detached; its process ends with its last user", opts.dir)
		}
		if err != nil {
			err = explainBusy(opts.dir, err)
			opts.note("%v; a second signal does so too", err)
			opts.log.Warn("a signal asked to unmount", "error", err)
		}
	}
}

// oomScore is that of a process that many others need: the kernel takes
// those first.
const oomScore = "-900"

// spareFromOOM keeps the kernel from killing this process when memory is
// short: a dead mount kills the VMs on it. Root only.
func spareFromOOM(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		log.Debug("oom_score_adj stays as it is", "error", err)
	}
}
