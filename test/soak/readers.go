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
	kills, spares         atomic.Int64 // processes that were killed: those that served, and those that would
	restarts              int64        // takeovers by restart; for harass alone
	id                    uint64       // of the mount, as the kernel counts them
	log                   bytes.Buffer // of its processes; to be read when they have ended
	cmd                   *exec.Cmd
	ended                 chan error   // holds what Wait returned for cmd
	using                 sync.RWMutex // held by readers; exclusive while it is mounted anew
	of                    sample       // of the mounted artifact; guarded by using
}

// registryFails is the exit code of a mount whose registry failed each try of a
// request.
const registryFails = 5

// up mounts, and returns when the files are there. A mount that a sick registry
// refuses is tried again.
func (m *mount) up() error {
	for deadline := time.Now().Add(3 * time.Minute); ; {
		m.cmd = exec.Command(m.bin, "mount", "-f", "--cache-dir", m.cache, "--cache-size", fmt.Sprint(m.size),
			"--prefetch", "none", m.repo+":"+m.of.tag, m.dir)
		m.cmd.Stderr = &m.log
		if err := m.cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		cmd := m.cmd
		go func() { ended <- cmd.Wait() }()
		m.ended = ended
		err := m.mounted(deadline)
		if err == nil {
			return nil
		}
		_ = m.cmd.Process.Kill() // it may have ended
		if <-ended; m.cmd.ProcessState.ExitCode() != registryFails || time.Now().After(deadline) {
			ended <- err // for down
			return fmt.Errorf("%w: %s", err, m.log.String())
		}
	}
}

// mounted returns nil when the files are there.
func (m *mount) mounted(deadline time.Time) error {
	for time.Now().Before(deadline) {
		// What the kernel knows of a dead mount it goes on telling, so it
		// must be another.
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, filepath.Join(m.dir, fileName), 0, unix.STATX_SIZE|unix.STATX_MNT_ID_UNIQUE, &st)
		if err == nil && st.Mnt_id != m.id {
			m.id = st.Mnt_id
			return nil
		}
		if len(m.ended) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("%s was not mounted", m.dir)
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
	return errors.Join(err, <-m.ended)
}

// tally counts the readers' results.
type tally struct {
	reads, bytes, failed, wrong atomic.Int64
	last                        atomic.Value // of string: the last read that failed or was wrong
	longest                     atomic.Int64 // nanoseconds that a read took, at most
}

func (t *tally) complain(to *atomic.Int64, format string, args ...any) {
	to.Add(1)
	t.last.Store(fmt.Sprintf(format, args...))
}

// read does some reads of a random kind on one descriptor and compares
// them.
func (m *mount) read(rng *rand.Rand, touching *toucher, t *tally) {
	m.using.RLock()
	defer m.using.RUnlock()
	kind := kinds[rng.IntN(len(kinds))]
	f, err := os.OpenFile(filepath.Join(m.dir, fileName), kind.flags, 0)
	if err != nil {
		t.reads.Add(1)
		t.complain(&t.failed, "%v", err)
		return
	}
	defer f.Close()
	for range 1 + rng.IntN(8) {
		m.compare(f, touching, kind, rng, t)
		time.Sleep(time.Millisecond) // cached data takes no time; faults are what counts
	}
}

// compare does one read.
func (m *mount) compare(f *os.File, touching *toucher, kind kind, rng *rand.Rand, t *tally) {
	flat := m.of.flat
	off := rng.IntN(len(flat))
	n := 1 + rng.IntN(256<<10)
	if kind.whole > 0 {
		off, n = off/kind.whole*kind.whole, (n+kind.whole-1)/kind.whole*kind.whole
	}
	want := flat[off:min(off+n, len(flat))]
	began := time.Now()
	got, err := kind.read(f, touching, off, n)
	took := int64(time.Since(began))
	for old := t.longest.Load(); took > old && !t.longest.CompareAndSwap(old, took); old = t.longest.Load() {
	}
	// The next one shall come to the mount's process again.
	_ = unix.Fadvise(int(f.Fd()), int64(off), int64(n), unix.FADV_DONTNEED)
	t.reads.Add(1)
	t.bytes.Add(int64(len(got)))
	switch {
	case err != nil:
		t.complain(&t.failed, "%s [%d,%d): %v", kind.name, off, off+n, err)
	case !bytes.Equal(got, want):
		t.complain(&t.wrong, "%s [%d,%d): wrong bytes, %d of %d", kind.name, off, off+n, len(got), len(want))
	}
}

// kind is a way to read.
type kind struct {
	name  string
	flags int
	whole int // offset and length are multiples of it; 0 for none
	read  func(f *os.File, touching *toucher, off, n int) ([]byte, error)
}

var kinds = []kind{
	{"read", os.O_RDONLY, 0, pread},
	{"direct read", os.O_RDONLY | unix.O_DIRECT, 4096, pread},
	{"large read", os.O_RDONLY, 1 << 20, pread},
	{"page fault", os.O_RDONLY, 4096, func(f *os.File, touching *toucher, off, n int) ([]byte, error) {
		return touching.read(f.Name(), off, n)
	}},
}

// pread reads to the end of the file at most.
func pread(f *os.File, _ *toucher, off, n int) ([]byte, error) {
	buf, err := unix.Mmap(-1, 0, (n+4095)/4096*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(buf)
	got, err := f.ReadAt(buf[:n], int64(off))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return bytes.Clone(buf[:got]), err
}

// readers read until ctx ends.
func (m *mount) readers(ctx context.Context, rng *rand.Rand, n int, t *tally, done func()) error {
	for range n {
		own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
		touching, err := startToucher()
		if err != nil {
			return err
		}
		go func() {
			defer done()
			for ctx.Err() == nil {
				m.read(own, touching, t)
			}
			if err := touching.close(); err != nil {
				t.complain(&t.failed, "the process that touches: %v", err)
			}
		}()
	}
	return nil
}
