package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mount is a mounted artifact with a cache of its own, cold at first.
type mount struct {
	b      *bench
	dir    string
	cache  string
	PID    int           `json:"pid"`        // of the process that serves it
	Keeper int           `json:"keeper_pid"` // of the process that keeps it
	took   time.Duration // until the command had returned
}

// mount mounts the artifact with a tag from a registry or proxy at addr.
func (b *bench) mount(ctx context.Context, addr, tag string, flags ...string) (*mount, error) {
	dir, err := os.MkdirTemp(b.dir, "mount-")
	if err != nil {
		return nil, err
	}
	return b.mountIn(ctx, dir, filepath.Join(dir, "cache"), addr, tag, flags...)
}

// mountIn mounts on a directory in dir, with a cache that may be there
// already. When it is unmounted, dir is removed.
func (b *bench) mountIn(ctx context.Context, dir, cache, addr, tag string, flags ...string) (*mount, error) {
	m := &mount{b: b, dir: filepath.Join(dir, "mnt"), cache: cache}
	for _, d := range []string{m.dir, m.cache} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	args := append([]string{"mount", addr + "/" + repo + ":" + tag, m.dir, "--cache-dir", m.cache, "--json"}, flags...)
	cmd := exec.CommandContext(ctx, b.epochfs, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	began := time.Now()
	if err := cmd.Run(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("epochfs mount: %w: %s", err, strings.TrimSpace(errOut.String()))
	}
	m.took = time.Since(began)
	if err := json.Unmarshal(out.Bytes(), m); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

// close unmounts and removes the cache.
func (m *mount) close() error {
	out, err := exec.Command(m.b.epochfs, "umount", m.dir).CombinedOutput()
	if err != nil {
		_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		err = fmt.Errorf("epochfs umount: %w: %s", err, strings.TrimSpace(string(out)))
	}
	if m.PID > 0 {
		// The cache is removed only when nobody writes to it any more.
		_ = eventually(20*time.Second, func() error {
			if unix.Kill(m.PID, 0) == nil {
				return errors.New("still there")
			}
			return nil
		})
	}
	return errors.Join(err, os.RemoveAll(filepath.Dir(m.dir)))
}

// data is the file on the cache's file system that has a dataset's bytes.
func (m *mount) data(d *dataset) (string, error) {
	files, err := filepath.Glob(filepath.Join(m.cache, "files", "*.data"))
	if err != nil {
		return "", err
	}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.Size() == d.m.Size() {
			return f, nil
		}
	}
	return "", fmt.Errorf("the cache has no file of %d bytes", d.m.Size())
}

// cached is how many bytes of a file are local, as the mount says.
func (m *mount) cached(name string) (int64, error) {
	buf := make([]byte, 64)
	n, err := unix.Getxattr(m.path(name), "user.epochfs.cached", buf)
	if err != nil {
		return 0, fmt.Errorf("user.epochfs.cached of %s: %w", name, err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(buf[:n])), 10, 64)
}

// memory returns what the serving process has in memory, now and at most,
// in MiB.
func (m *mount) memory() (now, most float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID))
	if err != nil {
		return 0, 0, err
	}
	mib := func(name string) float64 {
		kib, _, _ := strings.Cut(field(string(text), name), " ")
		n, _ := strconv.ParseFloat(kib, 64)
		return n / 1024
	}
	return mib("VmRSS"), mib("VmHWM"), nil
}

// awaitPassthrough returns when new opens of a file are served without
// the process: then reads past the page cache cost it no system calls.
func (m *mount) awaitPassthrough(name string) error {
	return eventually(30*time.Second, func() error {
		f, err := os.OpenFile(m.path(name), os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		before, err := m.syscalls()
		if err != nil {
			return err
		}
		buf := aligned(pageSize)
		const reads = 64
		for i := range int64(reads) {
			if _, err := f.ReadAt(buf, i*pageSize); err != nil {
				return err
			}
		}
		after, err := m.syscalls()
		if err == nil && after-before >= reads {
			err = errors.New("reads still go through the process")
		}
		return err
	})
}

// syscalls counts the reading system calls of the serving process.
func (m *mount) syscalls() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", m.PID))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(field(string(text), "syscr"), 10, 64)
}

// settle makes the next run start from the same state as the last: no
// data waiting to be written, nothing in the page cache but the blobs.
func (b *bench) settle() error {
	if b.keep {
		return nil
	}
	if err := syncFS(b.dir); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		b.warm = true // then all runs have a warm cache, and the table says so
	}
	defer b.held.take()()
	return b.registry.warm(b.writer.used)
}

// syncFS writes what is dirty of the file system that holds dir. sync(2) waits
// for every other one, a mount that stands still among them.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// forget drops a file's pages, of this mount alone.
func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// aligned is a buffer that O_DIRECT takes.
func aligned(n int) []byte {
	buf, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err) // only without memory
	}
	return buf
}
