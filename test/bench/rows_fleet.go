package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// fleetRows are many mounts and many VMs on one node.
var fleetRows = []row{{"fleet-memory", fleetMemoryRow}, {"fleet-many", fleetManyRow}, {"fleet-start", fleetStartRow}, {"fleet-shared", fleetSharedRow}}

const (
	idleMounts = 20
	manyMounts = 200
	fleetNodes = 32 // mounts, or VMs, that start one snapshot

	idleFor = 10 * time.Second // until what the start of a mount took has been given back

	holding = "hold-mapping" // FILE
)

// mountMany mounts one artifact n times with one cache. The function unmounts all.
func (b *bench) mountMany(ctx context.Context, n int, addr, tag string) (all []*mount, closeAll func() error, err error) {
	cache, err := os.MkdirTemp(b.dir, "shared-")
	if err != nil {
		return nil, nil, err
	}
	closeAll = func() (err error) {
		var g errgroup.Group
		g.SetLimit(8)
		for _, m := range all {
			g.Go(m.close)
		}
		return errors.Join(g.Wait(), os.RemoveAll(cache))
	}
	for range n {
		dir, err := os.MkdirTemp(b.dir, "mount-")
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		m, err := b.mountIn(ctx, dir, cache, addr, tag)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		all = append(all, m)
	}
	return all, closeAll, nil
}

// resident adds up what the processes of mounts have in memory, in MB, with what
// several of them have counted once (PSS), and their threads.
func resident(all []*mount) (pss, threads float64, err error) {
	for _, m := range all {
		var p, t float64
		// One of the three may end, and another may be about to take its place.
		err := eventually(20*time.Second, func() (err error) {
			p, t, err = m.resident()
			return err
		})
		if err != nil {
			return 0, 0, err
		}
		pss, threads = pss+p, threads+t
	}
	return pss, threads, nil
}

// resident is what the three processes of a mount have in memory, in MB (PSS),
// and their threads.
func (m *mount) resident() (pss, threads float64, err error) {
	pids, err := m.processes()
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range pids {
		kib, n, err := residentOf(pid)
		if err != nil {
			return 0, 0, err
		}
		pss, threads = pss+kib*1024/1e6, threads+n
	}
	return pss, threads, nil
}

// processes returns the ids of the keeper, the worker and the spare.
func (m *mount) processes() ([]string, error) {
	keeper := strconv.Itoa(m.Keeper)
	tasks, err := filepath.Glob(filepath.Join("/proc", keeper, "task", "*", "children"))
	if err != nil {
		return nil, err
	}
	pids := []string{keeper}
	for _, task := range tasks { // whichever thread has started them
		children, err := os.ReadFile(task)
		if err != nil {
			return nil, err
		}
		pids = append(pids, strings.Fields(string(children))...)
	}
	if len(pids) != 3 {
		return nil, fmt.Errorf("the mount kept by process %s has %d processes", keeper, len(pids))
	}
	return pids, nil
}

// residentOf returns a process's PSS, in KiB, and its threads.
func residentOf(pid string) (kib, threads float64, err error) {
	rollup, err := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	if err != nil {
		return 0, 0, err
	}
	status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(field(string(rollup), "Pss"), &kib)
	_, more := fmt.Sscan(field(string(status), "Threads"), &threads)
	return kib, threads, errors.Join(err, more)
}

// fleetMemoryRow is what an idle mount takes.
func fleetMemoryRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "slow"); err != nil {
		return nil, err
	}
	var pss, threads sample
	for range b.runs {
		all, closeAll, err := b.mountMany(ctx, idleMounts, b.registry.addr, "slow")
		if err != nil {
			return nil, err
		}
		time.Sleep(idleFor)
		p, t, err := resident(all)
		if err = errors.Join(err, closeAll()); err != nil {
			return nil, err
		}
		pss, threads = append(pss, p/idleMounts), append(threads, t/idleMounts)
	}
	return []*line{
		counted(fmt.Sprintf("memory a mount adds, idle: PSS of its three processes, %d mounts", idleMounts), "MB", pss, atMost, 8),
		counted("threads of them", "", threads, no, 0),
	}, nil
}

// fleetManyRow mounts as many as a node may have, and asks for their status.
func fleetManyRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "slow"); err != nil {
		return nil, err
	}
	all, closeAll, err := b.mountMany(ctx, manyMounts, b.registry.addr, "slow")
	if err != nil {
		return nil, err
	}
	defer closeAll()
	var starts, asked sample
	for _, m := range all {
		starts = append(starts, m.took.Seconds()*1e3)
	}
	for range max(5, b.runs) {
		began := time.Now()
		if out, err := exec.CommandContext(ctx, b.epochfs, "status", "--json").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("epochfs status: %w: %s", err, out)
		}
		asked = append(asked, time.Since(began).Seconds())
	}
	pss, _, err := resident(all)
	if err != nil {
		return nil, err
	}
	disk, err := all[0].filesOnDisk()
	if err != nil {
		return nil, err
	}
	return []*line{
		counted(fmt.Sprintf("%d mounts of one snapshot: start of one", manyMounts), "ms", starts, no, 0),
		counted("status of all, with who uses them", "s", asked, atMost, 1),
		counted("memory a mount adds (PSS)", "MB", sample{pss / manyMounts}, no, 0),
		counted("data files in their cache", "", sample{disk}, no, 0),
	}, nil
}

// filesOnDisk counts the data files of a mount's cache.
func (m *mount) filesOnDisk() (float64, error) {
	files, err := filepath.Glob(filepath.Join(m.cache, "files", "*.data"))
	return float64(len(files)), err
}

// fleetStartRow has one mount, and then many with one cache, read the same pages
// of one snapshot at the same time.
func fleetStartRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "half"); err != nil {
		return nil, err
	}
	addr, proxy, err := b.link(&shaping.Options{Delay: 5 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	defer proxy.Close()
	_, offsets := randomData(half, randomReads, 1)
	fetch := func(n int) (float64, error) {
		before := proxy.Counts()
		all, closeAll, err := b.mountMany(ctx, n, addr, "half")
		if err != nil {
			return 0, err
		}
		var g errgroup.Group
		for _, m := range all {
			g.Go(func() error {
				_, err := together(m.path(half.name), offsets, 1)
				return err
			})
		}
		err = errors.Join(g.Wait(), closeAll())
		return float64(proxy.Counts().Sub(before).Body) / 1e6, err
	}
	var one, many, ratio sample
	for range b.runs {
		a, err := fetch(1)
		if err != nil {
			return nil, err
		}
		n, err := fetch(fleetNodes)
		if err != nil {
			return nil, err
		}
		one, many, ratio = append(one, a), append(many, n), append(ratio, n/a)
	}
	return []*line{
		counted("bytes from the registry, one mount touching 500 pages", "MB", one, no, 0),
		counted(fmt.Sprintf("the same, %d mounts with one cache at the same time", fleetNodes), "MB", many, no, 0),
		counted("the second by the first", "×", ratio, atMost, 1.02),
	}, nil
}

// fleetSharedRow has many VMs map the memory of one snapshot.
func fleetSharedRow(ctx context.Context, b *bench) ([]*line, error) {
	if err := b.prepare(ctx, "slow"); err != nil {
		return nil, err
	}
	m, err := b.mount(ctx, b.registry.addr, "slow", "--prefetch", "all")
	if err != nil {
		return nil, err
	}
	defer m.close()
	one, err := heldBy(ctx, m.path(slow.name), 1)
	if err != nil {
		return nil, err
	}
	many, err := heldBy(ctx, m.path(slow.name), fleetNodes)
	if err != nil {
		return nil, err
	}
	return []*line{
		counted("memory of one VM that has mapped and touched 256 MiB of a mount (PSS of the mapping)", "MB", sample{one}, no, 0),
		counted(fmt.Sprintf("the same of %d VMs, together", fleetNodes), "MB", sample{many}, no, 0),
		counted("the second by the first", "×", sample{many / one}, atMost, 1.02),
	}, nil
}

// heldBy returns the PSS of n processes' mappings of a file, in MB, after each has
// touched all of it.
func heldBy(ctx context.Context, path string, n int) (mb float64, err error) {
	var stops []func() error
	defer func() {
		for _, stop := range stops {
			err = errors.Join(err, stop())
		}
	}()
	var pids []int
	for range n {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", holding, path)
		in, err := cmd.StdinPipe()
		if err != nil {
			return 0, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		stops = append(stops, func() error { return errors.Join(in.Close(), cmd.Wait()) })
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return 0, fmt.Errorf("a process that maps %s: %w", path, err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	for _, pid := range pids {
		kib, err := mappedPSS(pid, path)
		if err != nil {
			return 0, err
		}
		mb += kib * 1024 / 1e6
	}
	return mb, nil
}

// mappedPSS returns the PSS of a process's mapping of a file, in KiB.
func mappedPSS(pid int, path string) (float64, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	here := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		switch {
		case len(w) == 6 && w[5] == path:
			here = true
		case here && len(w) == 3 && w[0] == "Pss:":
			return strconv.ParseFloat(w[1], 64)
		}
	}
	return 0, fmt.Errorf("process %d has not mapped %s", pid, path)
}

// holdMapping maps a file as a hypervisor does, touches every page, says so, and
// holds it until stdin ends.
func holdMapping(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	if err := unix.Madvise(mem, unix.MADV_HUGEPAGE); err != nil {
		return err
	}
	sum := byte(0)
	for at := 0; at < len(mem); at += pageSize {
		sum += mem[at]
	}
	fmt.Println("touched", sum)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
