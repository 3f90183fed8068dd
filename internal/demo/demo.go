// Package demo demonstrates epochfs on a machine without a registry or a VM:
// it runs a registry in this process, makes up a snapshot, runs the commands
// that a user would type, and shows what each of them cost at the registry.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
)

// Options configures a demo.
type Options struct {
	Out    io.Writer
	Binary string // the epochfs binary to demonstrate
	NoFUSE int    // its exit code for a machine without FUSE
	Keep   bool   // keep registry and mount running until ctx ends
}

// show is one demo.
type show struct {
	Options
	dir     string // directory of all files that the demo writes
	ref     string
	server  *server
	mounted bool
}

// Run runs the demo. It leaves no files, mounts or processes behind.
func Run(ctx context.Context, opts Options) (err error) {
	dir, err := os.MkdirTemp("", "epochfs-demo-")
	if err != nil {
		return err
	}
	s := &show{Options: opts, dir: dir}
	defer func() { err = errors.Join(err, s.cleanUp()) }()
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if err := s.play(ctx); err != nil {
		return err
	}
	if opts.Keep {
		s.keep(ctx)
	}
	return nil
}

// prepare creates the sample, and a PATH in which epochfs is Binary.
func (s *show) prepare(ctx context.Context) error {
	for _, name := range []string{"bin", "mnt", "cache", "run", "docker", "hosts/_default"} {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o700); err != nil {
			return err
		}
	}
	// An empty configuration for every host keeps the commands from
	// reading the machine's own mirrors.
	if err := os.WriteFile(filepath.Join(s.dir, "hosts", "_default", "hosts.toml"), nil, 0o600); err != nil {
		return err
	}
	if err := os.Symlink(s.Binary, filepath.Join(s.dir, "bin", "epochfs")); err != nil {
		return err
	}
	s.say("A sample snapshot: memory-ranges of 1 GiB with 64 MiB of data, cow.raw of 2 GiB with an ext4.")
	note, err := writeSample(ctx, s.dir, filepath.Join(s.dir, "vm.tar"))
	if err != nil {
		return fmt.Errorf("make the sample: %w", err)
	}
	if note != "" {
		s.say("(%s)", note)
	}
	if s.server, err = startServer(filepath.Join(s.dir, "registry")); err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	s.ref = s.server.host + "/demo/vm:v1"
	s.say("A registry in this process: %s. All files are in %s, and so is the cache.", s.server.host, s.dir)
	return nil
}

func (s *show) play(ctx context.Context) error {
	if err := s.step(ctx, "Upload it.", "epochfs push --input vm.tar "+s.ref); err != nil {
		return err
	}
	if err := s.step(ctx, "Show its contents. This fetches no file data.", "epochfs inspect "+s.ref); err != nil {
		return err
	}
	s.mounted = true // the step may have mounted even if it failed
	err := s.step(ctx, "Mount it.", "epochfs mount --prefetch none "+s.ref+" mnt")
	var exit *exec.ExitError
	switch {
	case err == nil:
		err = s.throughMount(ctx)
	case errors.As(err, &exit) && exit.ExitCode() == s.NoFUSE:
		s.mounted = false
		s.say("\nNo FUSE on this machine: the same without a mount.")
		err = s.withoutMount(ctx)
	}
	if err != nil {
		return err
	}
	return s.materialize(ctx)
}

// offsets returns the offsets of pages in which the memory's map has data.
func offsets() (pages []int64) {
	segs := memoryMap()
	const reads = 8
	for i := range reads {
		pages = append(pages, segs[(2*i+1)*len(segs)/(2*reads)].Offset/page)
	}
	return pages
}

func (s *show) throughMount(ctx context.Context) error {
	if err := s.step(ctx, "List the files. This sends no request.", "ls -ls mnt"); err != nil {
		return err
	}
	if err := s.step(ctx, "Read a small file.", "cat mnt/config.json"); err != nil {
		return err
	}
	read := fmt.Sprintf("for page in %s; do dd if=mnt/memory-ranges bs=4096 count=1 skip=$page status=none; done | sha256sum",
		strings.Trim(fmt.Sprint(offsets()), "[]"))
	if err := s.step(ctx, "Read scattered pages of the memory. Only their surroundings are fetched.", read); err != nil {
		return err
	}
	if err := s.step(ctx, "Repeat the reads.", read); err != nil {
		return err
	}
	if err := s.step(ctx, "Mount again and repeat them, from the cache on disk.",
		"epochfs umount mnt && epochfs mount --prefetch none "+s.ref+" mnt && "+read); err != nil {
		return err
	}
	return nil
}

func (s *show) withoutMount(ctx context.Context) error {
	if err := s.step(ctx, "List the files. This sends no request.", "epochfs ls -l "+s.ref); err != nil {
		return err
	}
	if err := s.step(ctx, "Read a small file.", "epochfs cat "+s.ref+" config.json"); err != nil {
		return err
	}
	read := fmt.Sprintf("for page in %s; do epochfs cat --offset $((page * 4096)) --length 4096 %s memory-ranges; done | sha256sum",
		strings.Trim(fmt.Sprint(offsets()), "[]"), s.ref)
	if err := s.step(ctx, "Read scattered pages of the memory. Only their surroundings are fetched.", read); err != nil {
		return err
	}
	return s.step(ctx, "Repeat the reads, from the cache on disk.", read)
}

// materialize writes the tar again and compares it with the original.
func (s *show) materialize(ctx context.Context) error {
	err := s.step(ctx, "Write all of it as cocoon would import it. Only missing data is fetched.",
		"epochfs materialize -o out.tar "+s.ref)
	if err != nil {
		return err
	}
	want, err := digests(filepath.Join(s.dir, "vm.tar"))
	if err != nil {
		return err
	}
	got, err := digests(filepath.Join(s.dir, "out.tar"))
	if err != nil {
		return err
	}
	s.say("\nCompare the tar with the one that was pushed:")
	if len(got) != len(want) {
		return fmt.Errorf("materialize gave %d files, the snapshot has %d", len(got), len(want))
	}
	for i, w := range want {
		if got[i] != w {
			return fmt.Errorf("materialize gave %+v, the snapshot has %+v", got[i], w)
		}
		s.say("  %-14s %9s of data  sha256 %s…  same", w.name, humanize.IBytes(uint64(w.data)), w.sum[:16])
	}
	return nil
}

// step runs a command and shows the command, its output and its cost.
func (s *show) step(ctx context.Context, title, command string) error {
	s.say("\n%s\n$ %s", title, command)
	before, begun := s.server.cost(), time.Now()
	out, err := s.run(ctx, command)
	took := time.Since(begun)
	c := s.server.cost().since(before)
	if text := strings.TrimRight(string(out), "\n"); text != "" {
		s.say("%s", text)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	s.say("  -> %d requests, %s from the registry, %s to it, %d ms",
		c.requests, humanize.IBytes(uint64(c.sent)), humanize.IBytes(uint64(c.received)), took.Milliseconds())
	return nil
}

// run runs a command in the demo's directory, without the user's settings.
func (s *show) run(ctx context.Context, command string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir = s.dir
	// The whole group gets the signal: the shell may wait for a command
	// that waits for a mount's process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(),
		"PATH="+filepath.Join(s.dir, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"),
		"EPOCHFS_CACHE_DIR="+filepath.Join(s.dir, "cache"),
		"EPOCHFS_RUNTIME_DIR="+filepath.Join(s.dir, "run"),
		"EPOCHFS_HOSTS_DIR="+filepath.Join(s.dir, "hosts"),
		"DOCKER_CONFIG="+filepath.Join(s.dir, "docker"),
		"OCI_REGISTRY=", "EPOCH_SERVER=", "EPOCH_REGISTRY_TOKEN=", "EPOCH_CA_CERT=",
	)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// keep shows how to try the registry and the mount, and blocks until ctx
// ends.
func (s *show) keep(ctx context.Context) {
	s.say("\nRegistry%s stay up until Ctrl-C. To try, in another terminal:", map[bool]string{true: " and mount", false: ""}[s.mounted])
	s.say("  export EPOCHFS_CACHE_DIR=%s EPOCHFS_RUNTIME_DIR=%s", filepath.Join(s.dir, "cache"), filepath.Join(s.dir, "run"))
	if s.mounted {
		mnt := filepath.Join(s.dir, "mnt")
		s.say("  ls -l %s", mnt)
		s.say("  cp --sparse=always %s/memory-ranges /tmp/", mnt)
		s.say("  mkdir -p /tmp/guest && mount -o ro,loop,noload %s/cow.raw /tmp/guest", mnt)
	}
	s.say("  %s inspect --json %s", s.Binary, s.ref)
	s.say("  %s cat %s config.json", s.Binary, s.ref)
	<-ctx.Done()
}

func (s *show) cleanUp() error {
	var errs []error
	if s.server != nil {
		errs = append(errs, s.unmount())
		s.server.close()
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// exitNotMounted is the exit code of epochfs umount if nothing is mounted.
const exitNotMounted = 3

// unmount unmounts the mount, even if it is in use, and waits for its
// process. An interrupted command may still be about to mount.
func (s *show) unmount() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.mounted {
			out, err := s.run(ctx, "epochfs umount mnt || epochfs umount --lazy mnt")
			var exit *exec.ExitError
			if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == exitNotMounted) {
				return fmt.Errorf("umount: %w: %s", err, bytes.TrimSpace(out))
			}
		}
		if !s.running() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("a process of the demo does not end")
		}
	}
}

// running reports whether a process started in the demo's directory is left.
func (s *show) running() bool {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err == nil && bytes.Contains(env, []byte("EPOCHFS_CACHE_DIR="+s.dir+"/")) {
			return true
		}
	}
	return false
}

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.Out, format+"\n", args...) }
