package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// TestMaterialize runs the scripts of testdata/materialize against each
// kind of registry, unless registries says otherwise. Under the race detector
// it is the first that each runs against that the program is made for.
func TestMaterialize(t *testing.T) {
	tier.Long(t, "runs scripts against three registries")
	t.Parallel()
	files, err := filepath.Glob("testdata/materialize/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	bin := buildPlain(t)
	programs := map[string]string{} // that a script runs, but for the first time
	for _, kind := range []string{"memory", "epoch", "debian"} {
		for _, file := range files {
			if on := registries[filepath.Base(file)]; on != nil && !slices.Contains(on, kind) {
				continue
			}
			program := programs[file]
			programs[file] = bin
			t.Run(kind+"/"+filepath.Base(file), func(t *testing.T) {
				t.Parallel() // each has a registry and a cache of its own
				w := &world{t: t, plain: program, front: startRegistry(t, kind)}
				cmds := w.commands()
				maps.Copy(cmds, map[string]command{
					"sametar":     sameTar,
					"samedir":     sameDir(0o777),
					"samemount":   sameDir(0o555),
					"tenth":       w.tenth,
					"kill-cocoon": w.killCocoon,
					"nothing-in":  nothingIn,
					"fragtar":     fragTar,
					"flattar":     flatTar,
					"oddtar":      oddTar,
					"renamed":     renamed,
				})
				testscript.Run(t, testscript.Params{
					Files: []string{file}, RequireExplicitExec: true, RequireUniqueNames: true,
					Setup: w.setup, Cmds: cmds, Condition: condition,
				})
			})
		}
	}
}

// tenth: every tenth request breaks off, in turn before an answer, in its
// body, and with an error.
func (w *world) tenth(*testscript.TestScript, bool, []string) {
	var n atomic.Int64
	nth := func(of int64) func(*http.Request) bool {
		return func(r *http.Request) bool { return n.Load()%30 == of }
	}
	count := func(*http.Request) bool { n.Add(1); return false }
	w.front.Inject(&registrytest.Fault{Match: count})
	w.front.Inject(&registrytest.Fault{Match: nth(10), Drop: true})
	w.front.Inject(&registrytest.Fault{Match: nth(20), Cut: 70000})
	w.front.Inject(&registrytest.Fault{Match: nth(0), Status: http.StatusServiceUnavailable})
}

// entry is what a tar has of a file.
type entry struct {
	name, pax string
	mode      int64
	size      int64
	sum       [32]byte
}

func readTar(name string) ([]entry, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []entry
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return nil, err
		}
		e := entry{name: h.Name, mode: h.Mode, size: h.Size, sum: [32]byte(sum.Sum(nil))}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(key, "COCOON.") {
				e.pax += key + "=" + h.PAXRecords[key] + "\n"
			}
		}
		all = append(all, e)
	}
}

// sametar A B: the same entries in the same order.
func sameTar(ts *testscript.TestScript, _ bool, args []string) {
	a, err := readTar(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := readTar(ts.MkAbs(args[1]))
	ts.Check(err)
	if len(a) != len(b) || len(a) == 0 {
		ts.Fatalf("%d and %d entries", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			ts.Fatalf("entries differ: %+v, %+v", a[i], b[i])
		}
	}
}

// samedir DIR TAR: the directory holds the files of the tar with their
// modes, apparent sizes and bytes, holes where the maps have them, and
// nothing else. samemount is the same for a mount, where nobody may write.
func sameDir(mask int64) command {
	return func(ts *testscript.TestScript, _ bool, args []string) { sameFiles(ts, mask, args) }
}

func sameFiles(ts *testscript.TestScript, mask int64, args []string) {
	dir := ts.MkAbs(args[0])
	f, err := os.Open(ts.MkAbs(args[1]))
	ts.Check(err)
	defer f.Close()
	files := 0
	for r := tar.NewReader(f); ; files++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		ts.Check(err)
		m, err := mapOf(h)
		ts.Check(err)
		h.Mode &= mask
		ts.Check(sameFile(filepath.Join(dir, h.Name), h, m, r))
	}
	found, err := os.ReadDir(dir)
	ts.Check(err)
	if len(found) != files {
		ts.Fatalf("%d files, not %d: %v", len(found), files, found)
	}
}

// sameFile compares a file with its tar entry, and the rest of it with
// zeros.
func sameFile(name string, h *tar.Header, m *sparse.Map, payload io.Reader) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() != m.Size() || int64(st.Mode()) != h.Mode {
		return fmt.Errorf("%s: size %d, mode %v; want %d, %o", name, st.Size(), st.Mode(), m.Size(), h.Mode)
	}
	most := m.DataSize() + int64(2*m.Len()+1)*4096
	if disk := st.Sys().(*syscall.Stat_t).Blocks * 512; disk > most {
		return fmt.Errorf("%s takes %d bytes on disk for %d of data", name, disk, m.DataSize())
	}
	at := int64(0)
	for _, s := range m.Segments() {
		if err := zeros(f, at, s.Offset-at); err != nil {
			return err
		}
		want := make([]byte, s.Length)
		got := make([]byte, s.Length)
		if _, err := io.ReadFull(payload, want); err != nil {
			return err
		}
		if _, err := f.ReadAt(got, s.Offset); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s differs in the segment at %d", name, s.Offset)
		}
		at = s.Offset + s.Length
	}
	if err := zeros(f, at, m.Size()-at); err != nil {
		return err
	}
	return sameHoles(f, m)
}

// sameHoles looks whether the file has holes where the map has them, in whole
// blocks.
func sameHoles(f *os.File, m *sparse.Map) error {
	const block, most = 4096, 2000
	segs := append(m.Segments(), sparse.Segment{Offset: m.Size()})
	for i := 0; i+1 < len(segs); i += 1 + len(segs)/most {
		from := (segs[i].Offset + segs[i].Length + block - 1) / block * block
		to := segs[i+1].Offset / block * block
		if from >= to {
			continue
		}
		if at, err := unix.Seek(int(f.Fd()), segs[i].Offset, unix.SEEK_HOLE); err != nil || at > from {
			return fmt.Errorf("%s: the hole at %d begins at %d, %v", f.Name(), from, at, err)
		}
		if at, err := unix.Seek(int(f.Fd()), from, unix.SEEK_DATA); err == nil && at < to || err != nil && err != unix.ENXIO {
			return fmt.Errorf("%s: the hole at %d ends at %d, %v", f.Name(), from, at, err)
		}
	}
	return nil
}

func zeros(f *os.File, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for ; n > 0; off, n = off+int64(len(buf)), n-int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n)]
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		if bytes.Count(buf, []byte{0}) != len(buf) {
			return fmt.Errorf("%s has data in a hole at %d", f.Name(), off)
		}
	}
	return nil
}

// kill-cocoon: an import is under way, and is killed.
func (w *world) killCocoon(ts *testscript.TestScript, _ bool, _ []string) {
	killed := poll(func() bool {
		for _, pid := range w.processes() {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.Contains(string(line), "snapshot\x00import\x00") {
				return syscall.Kill(pid, syscall.SIGKILL) == nil
			}
		}
		return false
	})
	if !killed {
		ts.Fatalf("no import came")
	}
}

// nothing-in DIR: there is nothing, hidden or not, but what is named.
func nothingIn(ts *testscript.TestScript, _ bool, args []string) {
	found, err := os.ReadDir(ts.MkAbs(args[0]))
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	ts.Check(err)
	for _, f := range found {
		if !strings.Contains(" "+strings.Join(args[1:], " ")+" ", " "+f.Name()+" ") {
			ts.Fatalf("%s holds %s", args[0], f.Name())
		}
	}
}
