package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// materializeRows measure tars and directories of snapshots; they are not
// among those of the mount.
var materializeRows = []row{
	{"tar-shaped", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.fewer().tarRow(ctx, "tar of v1, shaped", "v1", &shaped, streamed, 0.3, 0)
	}},
	{"tar-cpu", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.tarRow(ctx, "tar of v1, loopback as it is", "v1", nil, streamed, 1, 256)
	}},
	{"tar-v2-shaped", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.fewer().tarRow(ctx, "tar of v2 in zstd chunks of 4 MiB, shaped", "v2", &shaped, decoded, 0.9, 0)
	}},
	{"tar-v2-cpu", func(ctx context.Context, b *bench) ([]*line, error) {
		return b.tarRow(ctx, "tar of v2 in zstd chunks of 4 MiB, loopback as it is", "v2", nil, decoded, 0.9, 256)
	}},
	{"tar-no-range", func(ctx context.Context, b *bench) ([]*line, error) {
		opts := shaped
		opts.IgnoreRanges = true
		return b.tarRow(ctx, "tar of v1, shaped, registry without Range", "v1", &opts, streamed, 1, 0)
	}},
	{"tar-local", tarLocalRow},
	{"to-dir", toDirRow},
}

// tarReference is a plain program that does the same.
type tarReference struct{ work, name string }

var (
	streamed = tarReference{"one stream a blob, hashed into the tar", streaming}
	decoded  = tarReference{"8 chunks at a time, hashed, decoded, in order", decoding}
)

// materialized is the cost of one run.
type materialized struct {
	seconds float64
	rss     float64 // MB
}

// materialize runs the command. Its tar goes where nothing has to be
// waited for, as does that of the references.
func (b *bench) materialize(ctx context.Context, addr, tag, cache string, args ...string) (m materialized, err error) {
	args = append([]string{"materialize", "--quiet", "--cache-dir", cache, addr + "/" + repo + ":" + tag}, args...)
	cmd := exec.CommandContext(ctx, b.epochfs, args...)
	var words strings.Builder
	cmd.Stderr = &words                        // stdout is /dev/null
	if err := readAll(b.epochfs); err != nil { // the references are in memory too
		return m, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	most := watchMemory(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		return m, fmt.Errorf("epochfs materialize: %w: %s", err, strings.TrimSpace(words.String()))
	}
	m.seconds = time.Since(began).Seconds()
	m.rss = most()
	return m, nil
}

// watchMemory samples a process's memory until the process ends, and then
// returns the maximum, in MB. A child's resource usage begins with its
// parent's, so it cannot be used.
func watchMemory(pid int) (most func() float64) {
	result := make(chan float64)
	go func() {
		mb := 0.0
		for {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			kib, _, _ := strings.Cut(field(string(text), "VmHWM"), " ")
			n, parseErr := strconv.ParseFloat(kib, 64)
			if err != nil || parseErr != nil {
				result <- mb
				return
			}
			mb = n * 1024 / 1e6
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return func() float64 { return <-result }
}

// cold materializes with a cache of its own.
func (b *bench) cold(ctx context.Context, addr, tag string, args ...string) (materialized, error) {
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return materialized{}, err
	}
	defer os.RemoveAll(cache)
	return b.materialize(ctx, addr, tag, cache, args...)
}

// tarRow writes a tar, with nothing kept and with a cold cache that keeps all,
// against a reference that writes one too. A limit of 0 for the memory is
// none.
func (b *bench) tarRow(ctx context.Context, work, tag string, opts *shaping.Options, ref tarReference, limit, memory float64) ([]*line, error) {
	if err := b.prepare(ctx, tag); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(opts)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		defer proxy.Close()
	}
	modes := []string{"", "--keep"}
	rss := make([]sample, len(modes))
	var runs []func() (float64, error)
	for i, mode := range modes {
		runs = append(runs, func() (float64, error) {
			m, err := b.cold(ctx, addr, tag, slices.DeleteFunc([]string{"-o", "-", mode}, func(s string) bool { return s == "" })...)
			rss[i] = append(rss[i], m.rss)
			return m.seconds, err
		})
	}
	times, err := b.rounds(ctx, append(runs, func() (float64, error) {
		return b.plainly(ctx, ref.name, addr, tag)
	})...)
	if err != nil {
		return nil, err
	}
	var lines []*line
	for i, mode := range modes {
		what := strings.TrimSuffix(", "+mode, ", ")
		l := timed(work+what, times[i], ref.work, times[len(modes)], atMost, limit)
		l.Note = number(rss[i].median()) + " MB of memory"
		lines = append(lines, l)
		if memory > 0 {
			lines = append(lines, counted("memory of it at its most"+what, "MB", rss[i], atMost, memory))
		}
	}
	return lines, nil
}

// tarLocalRow writes a tar of what is in the cache, against the same with
// a cold one.
func tarLocalRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp(b.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	addr := b.registry.addr
	if _, err := b.materialize(ctx, addr, "v1", cache, "-o", "-", "--keep"); err != nil {
		return nil, err
	}
	ours, theirs, err := b.pair(ctx, func() (float64, error) {
		if err := readTree(cache); err != nil { // as the registry's blobs are
			return 0, err
		}
		m, err := b.materialize(ctx, addr, "v1", cache, "-o", "-")
		return m.seconds, err
	}, func() (float64, error) {
		m, err := b.cold(ctx, addr, "v1", "-o", "-", "--keep")
		return m.seconds, err
	})
	if err != nil {
		return nil, err
	}
	return []*line{timed("tar of v1, all in the cache", ours, "cold, --keep, loopback as it is", theirs, atMost, 0.5)}, nil
}

// readTree has all files below a directory in the page cache.
func readTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		return readAll(path)
	})
}

// toDirRow makes a directory from a full cache on a file system that can
// share blocks, against a copy of the files.
func toDirRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "v1"); err != nil {
		return nil, err
	}
	dir, unmount, err := b.reflinkFS(ctx)
	if err != nil {
		return nil, err
	}
	defer unmount()
	cache, first := filepath.Join(dir, "cache"), filepath.Join(dir, "first")
	addr := b.registry.addr
	if _, err := b.materialize(ctx, addr, "v1", cache, "--to-dir", first, "--keep"); err != nil {
		return nil, err
	}
	ours, theirs, err := b.pair(ctx, func() (float64, error) {
		out := filepath.Join(dir, "ours")
		defer os.RemoveAll(out)
		m, err := b.materialize(ctx, addr, "v1", cache, "--to-dir", out)
		return m.seconds, err
	}, func() (float64, error) {
		out := filepath.Join(dir, "theirs")
		defer os.RemoveAll(out)
		began := time.Now()
		if text, err := exec.CommandContext(ctx, "cp", "-r", "--reflink=never", first, out).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("cp: %w: %s", err, text)
		}
		return time.Since(began).Seconds(), nil
	})
	if err != nil {
		return nil, err
	}
	return []*line{timed("--to-dir from a full cache, XFS", ours, "cp -r --reflink=never of such a directory", theirs, atMost, 0.3)}, nil
}

// reflinkFS makes a file system on a loop device, and mounts it.
func (b *bench) reflinkFS(ctx context.Context) (dir string, unmount func(), err error) {
	image := filepath.Join(b.dir, "xfs.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<30)); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(b.dir, "xfs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return "", nil, fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(out.Bytes()))
		}
	}
	return dir, func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.Remove(image)
	}, nil
}
