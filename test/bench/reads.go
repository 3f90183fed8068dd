package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// sequential reads [off, end) of a file in steps of 1 MiB and returns the
// seconds it took, with opening it.
func sequential(path string, off, end int64) (float64, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := aligned(1 << 20)
	defer unix.Munmap(buf)
	for off < end {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		off += int64(n)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if n == 0 {
			return 0, fmt.Errorf("%s ends at %d, not at %d", path, off, end)
		}
	}
	return time.Since(began).Seconds(), nil
}

// sequentialData reads what lseek calls data, as programs do that copy
// sparse files, and returns the seconds it took.
func sequentialData(path string) (float64, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := aligned(1 << 20)
	defer unix.Munmap(buf)
	for off := int64(0); ; {
		from, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return time.Since(began).Seconds(), nil
		}
		if err != nil {
			return 0, err
		}
		if off, err = f.Seek(from, unix.SEEK_HOLE); err != nil {
			return 0, err
		}
		for from < off {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), off-from)], from)
			if err != nil {
				return 0, err
			}
			from += int64(n)
		}
	}
}

// randomly reads 4 KiB at each offset and returns the seconds that all of
// them took, and the median of one in microseconds.
func randomly(path string, offsets []int64, flags int) (total, p50 float64, err error) {
	began := time.Now()
	f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	buf := aligned(pageSize)
	defer unix.Munmap(buf)
	took := make(sample, len(offsets))
	for i, off := range offsets {
		t := time.Now()
		if _, err := f.ReadAt(buf, off); err != nil {
			return 0, 0, err
		}
		took[i] = float64(time.Since(t).Nanoseconds()) / 1e3
	}
	return time.Since(began).Seconds(), took.median(), nil
}

// together reads 4 KiB at each offset from several threads that share one
// descriptor, as a hypervisor's do, and returns the seconds it took.
func together(path string, offsets []int64, threads int) (float64, error) {
	began := time.Now()
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var g errgroup.Group
	for i := range threads {
		g.Go(func() error {
			buf := make([]byte, pageSize)
			for k := i; k < len(offsets); k += threads {
				if _, err := f.ReadAt(buf, offsets[k]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	return time.Since(began).Seconds(), err
}

// randomData picks n offsets of pages that have data: in the payload, and
// in the file.
func randomData(d *dataset, n int, seed uint64) (payload, file []int64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for range n {
		off := rng.Int64N(d.m.DataSize()/pageSize) * pageSize
		payload = append(payload, off)
		for run := range d.m.Payload(off, pageSize) {
			file = append(file, run.Offset)
		}
	}
	return payload, file
}

// extent is a stretch of a file.
type extent struct{ Off, Len int64 }

// workingSet picks clusters of data that together are share of the file's
// data, as the pages that a resumed guest touches are: stretches of 256 KiB
// to 4 MiB, in no order. They are dealt to as many lists as there are
// processors in the guest.
func workingSet(d *dataset, share float64, processors int, seed uint64) [][]extent {
	rng := rand.New(rand.NewPCG(seed, 3))
	lists := make([][]extent, processors)
	taken := map[int64]bool{}
	const slot = 4 << 20
	for left := int64(share * float64(d.m.DataSize())); left > 0; {
		at := rng.Int64N(d.m.DataSize()/slot) * slot
		if taken[at] {
			continue
		}
		taken[at] = true
		n := min(int64(64<<rng.IntN(5)), left/pageSize+1) * pageSize
		left -= n
		list := &lists[len(taken)%processors]
		for run := range d.m.Payload(at, n) {
			*list = append(*list, extent{run.Offset, run.Length})
		}
	}
	return lists
}

// touching is the name under which this program calls itself to touch
// pages: a fault stops a whole thread of the Go scheduler, which must not
// be one that serves the proxy.
const touching = "touch-pages"

// touch has a process of its own map a file and touch one byte of each
// page of the extents, each list in a thread of its own, and returns the
// seconds it took. With huge the mapping is advised as QEMU and Cloud Hypervisor
// do: the kernel then reads 2 MiB around each fault.
func touch(ctx context.Context, path string, lists [][]extent, huge bool) (float64, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	cmd := exec.CommandContext(ctx, self, touching, strconv.FormatBool(huge), path)
	cmd.Env = append(os.Environ(), fmt.Sprint("GOMAXPROCS=", len(lists)+2))
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	go func() {
		_ = json.NewEncoder(w).Encode(lists) // the child says what is missing
		w.Close()
	}()
	out, err := cmd.Output()
	if err != nil {
		return 0, err
	}
	var seconds float64
	return seconds, json.Unmarshal(out, &seconds)
}

// touchPages is the other end of touch.
func touchPages(path string, huge bool) error {
	debug.SetGCPercent(-1)
	var lists [][]extent
	if err := json.NewDecoder(os.Stdin).Decode(&lists); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	began := time.Now()
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	if huge {
		if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil {
			return err
		}
	}
	sums := make([]byte, len(lists))
	var threads sync.WaitGroup
	for i, list := range lists {
		threads.Go(func() {
			runtime.LockOSThread()
			for _, e := range list {
				for off := e.Off; off < e.Off+e.Len; off += pageSize {
					sums[i] += mem[off]
				}
			}
		})
	}
	threads.Wait()
	seconds := time.Since(began).Seconds()
	_ = slices.Max(sums) // the reads must not be optimised away
	return json.NewEncoder(os.Stdout).Encode(seconds)
}
