package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// mount is one epochfs mount, whose processes may be killed.
type mount struct {
	bin, cache, repo, dir string
	size                  int64        // of the cache
	kills                 atomic.Int64 // of its processes
	id                    uint64       // of the mount, as the kernel counts them
	log                   bytes.Buffer // of its processes; to be read when they have ended
	cmd                   *exec.Cmd
	using                 sync.RWMutex // held by readers; exclusive while it is mounted anew
	of                    sample       // what is mounted; under using
}

// up mounts and returns when the files are there.
func (m *mount) up() error {
	m.cmd = exec.Command(m.bin, "mount", "-f", "--cache-dir", m.cache, "--cache-size", fmt.Sprint(m.size),
		"--prefetch", "none", m.repo+":"+m.of.tag, m.dir)
	out := &m.log
	m.cmd.Stderr = out
	if err := m.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		// What the kernel knows of a dead mount it goes on telling, so it
		// must be another.
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(m.dir, fileName), 0, unix.STATX_SIZE|unix.STATX_MNT_ID_UNIQUE, &st)
		if err == nil && st.Mnt_id != m.id {
			m.id = st.Mnt_id
			return nil
		}
		if time.Now().After(deadline) {
			_ = m.cmd.Process.Kill()
			_ = m.cmd.Wait()
			return fmt.Errorf("%s was not mounted: %s", m.dir, out.String())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// kill ends a process behind the mount as a crash would: the one that
// serves, or its spare.
func (m *mount) kill() error {
	m.kills.Add(1)
	keeper := m.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", keeper, keeper))
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		return nil // between two of them
	}
	_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
	return nil
}

// cold mounts anew, with an empty cache, when no reader is at it.
func (m *mount) cold(reg *sick) error {
	m.using.Lock()
	defer m.using.Unlock()
	reg.present.RLock()
	defer reg.present.RUnlock()
	return errors.Join(m.down(), os.RemoveAll(m.cache), m.up())
}

// move mounts another artifact, when no reader is at it. What was mounted
// may be evicted from now on.
func (m *mount) move(reg *sick, to sample) error {
	m.using.Lock()
	defer m.using.Unlock()
	reg.present.RLock()
	defer reg.present.RUnlock()
	if err := m.down(); err != nil {
		return err
	}
	m.of = to
	return m.up()
}

func (m *mount) down() error {
	err := exec.Command(m.bin, "umount", "--lazy", m.dir).Run()
	return errors.Join(err, m.cmd.Wait())
}

// tally is what readers saw.
type tally struct {
	reads, bytes, failed, wrong atomic.Int64
	last                        atomic.Value // of string: the last read that failed or was wrong
	longest                     atomic.Int64 // nanoseconds that a read took, at most
}

func (t *tally) complain(to *atomic.Int64, format string, args ...any) {
	to.Add(1)
	t.last.Store(fmt.Sprintf(format, args...))
}

// read does one read of a random kind and compares it.
func (m *mount) read(rng *rand.Rand, t *tally) {
	m.using.RLock()
	defer m.using.RUnlock()
	flat := m.of.flat
	off := rng.IntN(len(flat))
	n := 1 + rng.IntN(min(256<<10, len(flat)-off))
	var got []byte
	var err error
	began := time.Now()
	switch rng.IntN(3) {
	case 0:
		got, err = m.pread(off, n, unix.O_RDONLY)
	case 1:
		off, n = off/4096*4096, (n+4095)/4096*4096
		got, err = m.pread(off, n, unix.O_RDONLY|unix.O_DIRECT)
	default:
		off, n = off/(1<<20)*(1<<20), 1<<20
		got, err = m.pread(off, n, unix.O_RDONLY)
	}
	for took, old := int64(time.Since(began)), t.longest.Load(); took > old && !t.longest.CompareAndSwap(old, took); old = t.longest.Load() {
	}
	t.reads.Add(1)
	t.bytes.Add(int64(len(got)))
	switch {
	case err == nil && !bytes.Equal(got, flat[off:min(off+n, off+len(got), len(flat))]):
		t.complain(&t.wrong, "wrong bytes at %d, %d of them", off, len(got))
	case err != nil:
		t.complain(&t.failed, "read [%d,%d): %v", off, off+n, err)
	}
}

func (m *mount) pread(off, n, flags int) ([]byte, error) {
	fd, err := unix.Open(filepath.Join(m.dir, fileName), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: m.dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), m.dir)
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, (n+4095)/4096*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(buf)
	got, err := f.ReadAt(buf[:n], int64(off))
	// The next one shall come to the mount's process again.
	_ = unix.Fadvise(fd, int64(off), int64(n), unix.FADV_DONTNEED)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return bytes.Clone(buf[:got]), err
}

// readers read until ctx ends.
func (m *mount) readers(ctx context.Context, rng *rand.Rand, n int, t *tally, done func()) {
	for range n {
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		go func() {
			defer done()
			for ctx.Err() == nil {
				m.read(own, t)
				time.Sleep(time.Millisecond) // what is cached takes none: faults are what counts
			}
		}()
	}
}
