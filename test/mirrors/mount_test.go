package mirrors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is a machine with a cache of its own that reaches the registry by way
// of a mirror, or directly.
type node struct {
	t   testing.TB
	dir string
	ref string
	env []string
}

// way is how a node gets to the registry.
type way struct {
	mirror string // URL of a cache, "" for none
	alone  bool   // the cache stands for the registry: the node does not go past it
}

// newNode makes one.
func (u *upstream) newNode(t testing.TB, w way) *node {
	n := &node{t: t, dir: t.TempDir(), ref: u.front.Host + "/" + repo}
	hosts := filepath.Join(n.dir, "hosts", "_default")
	for _, d := range []string{hosts, filepath.Join(n.dir, "mnt")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	server := u.front.URL
	if w.alone {
		server = w.mirror
	}
	text := fmt.Sprintf("server = %q\nca = %q\n", server, u.ca.File)
	if w.mirror != "" && !w.alone {
		text += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\nca = %q\n", w.mirror, u.ca.File)
	}
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.env = append(os.Environ(), "EPOCHFS_CACHE_DIR="+filepath.Join(n.dir, "cache"), "EPOCHFS_RUNTIME_DIR="+filepath.Join(n.dir, "run"),
		"EPOCHFS_HOSTS_DIR="+filepath.Join(n.dir, "hosts"), "HOME="+n.dir)
	return n
}

// run returns what the program prints.
func (n *node) run(args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	var out, errOut strings.Builder
	cmd.Env, cmd.Stdout, cmd.Stderr = n.env, &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("epochfs %q: %w: %s%s", args, err, errOut.String(), out.String())
	}
	return out.String(), nil
}

// mnt is where it mounts.
func (n *node) mnt() string { return filepath.Join(n.dir, "mnt") }

func (n *node) mount() error {
	n.t.Cleanup(n.unmount)
	_, err := n.run("mount", "--quiet", n.ref, n.mnt())
	return err
}

// unmount unmounts, and removes the cache, for there is not room for all.
func (n *node) unmount() {
	if _, err := n.run("umount", n.mnt()); err != nil {
		_ = unix.Unmount(n.mnt(), unix.MNT_DETACH)
	}
	_ = os.RemoveAll(filepath.Join(n.dir, "cache"))
}

// fromRegistry is how many blobs' bytes the mount had from the registry
// itself and not from a mirror.
func (n *node) fromRegistry() (bytes int64, err error) {
	out, err := n.run("status", "--json", n.mnt())
	if err != nil {
		return 0, err
	}
	var s struct {
		Mounts []struct {
			Mirrors []struct {
				Registry bool  `json:"registry"`
				Bytes    int64 `json:"bytes"`
			} `json:"mirrors"`
		} `json:"mounts"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return 0, err
	}
	for _, m := range s.Mounts[0].Mirrors {
		if m.Registry {
			bytes += m.Bytes
		}
	}
	return bytes, nil
}

// touched is what a reader found.
type touched struct {
	waits []time.Duration // of each page
	wrong int             // pages with wrong bytes
}

// touch reads pages one after the other, in a process of its own.
func (n *node) touch(u *upstream, page int64, pages []int64) (touched, error) {
	cmd := exec.Command(os.Args[0], "reader", filepath.Join(n.mnt(), memory), fmt.Sprint(page))
	var in bytes.Buffer
	if err := binary.Write(&in, binary.NativeEndian, pages); err != nil {
		return touched{}, err
	}
	cmd.Stdin, cmd.Stderr = &in, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return touched{}, err
	}
	if err := cmd.Start(); err != nil {
		return touched{}, err
	}
	var got touched
	buf := make([]byte, 8+page)
	for _, p := range pages {
		if _, err := io.ReadFull(out, buf); err != nil {
			return got, errors.Join(fmt.Errorf("page %d was not read: %w", p, err), cmd.Wait())
		}
		got.waits = append(got.waits, time.Duration(binary.NativeEndian.Uint64(buf)))
		if !bytes.Equal(buf[8:], u.flat[p*page:(p+1)*page]) {
			got.wrong++
		}
	}
	return got, cmd.Wait()
}

// reader reads the pages of a file that stdin names, and writes how long each
// took, in nanoseconds, and what it is.
func reader(args []string) int {
	var page int64
	_, err := fmt.Sscan(args[1], &page)
	f, openErr := os.Open(args[0])
	list, readErr := io.ReadAll(os.Stdin)
	if err := errors.Join(err, openErr, readErr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// As a guest's memory is: what is not touched is not read ahead.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	buf := make([]byte, 8+page)
	for ; len(list) > 0; list = list[8:] {
		began := time.Now()
		if _, err := f.ReadAt(buf[8:], int64(binary.NativeEndian.Uint64(list))*page); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		binary.NativeEndian.PutUint64(buf, uint64(time.Since(began)))
		if _, err := os.Stdout.Write(buf); err != nil {
			return 1
		}
	}
	return 0
}

// site is what some nodes that started the same snapshot at once came to.
type site struct {
	sent     int64 // bytes of blobs that left the registry
	direct   int64 // of these, those that did not go through the mirror
	p50, p99 time.Duration
	wrong    int
}

// starts has that many nodes start the snapshot at once.
func (u *upstream) starts(t testing.TB, w way, nodes int, page int64, pages []int64) site {
	t.Helper()
	all := make([]*node, nodes)
	for i := range all {
		all[i] = u.newNode(t, w)
	}
	u.sent()
	var mu sync.Mutex
	var got site
	var waits []time.Duration
	var each sync.WaitGroup
	for _, n := range all {
		each.Go(func() {
			err := n.mount()
			var x touched
			var direct int64
			if err == nil {
				x, err = n.touch(u, page, pages)
			}
			if err == nil && !w.alone {
				direct, err = n.fromRegistry()
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			waits = append(waits, x.waits...)
			got.wrong += x.wrong
			got.direct += direct
		})
	}
	each.Wait()
	got.sent = u.sent()
	for _, n := range all {
		n.unmount()
	}
	if len(waits) > 0 {
		slices.Sort(waits)
		got.p50, got.p99 = waits[len(waits)/2], waits[len(waits)*99/100]
	}
	return got
}
