package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// toucher maps the file of its first argument and touches pages: those that
// the other arguments name, FIRST+COUNT. If it is told to "stay", it ends when
// it is killed, or when the file that follows is there.
func toucher() {
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	st, err := f.Stat()
	if err == nil {
		var mapped []byte
		if mapped, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err == nil {
			touch(mapped, os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func touch(mapped []byte, args []string) {
	for _, arg := range args {
		if arg == "stay" {
			select {}
		}
		from, count, _ := strings.Cut(arg, "+")
		page, _ := strconv.Atoi(from)
		n, _ := strconv.Atoi(count)
		for ; n > 0; n, page = n-1, page+1 {
			mapped[page*workingset.PageSize]++
		}
	}
}

const (
	recordPages = 4 << 10 // of the memory: 16 MiB
	// Fewer pages in a row than make a sequential reader, whose READs are not
	// declined.
	recordTouch = "7+3 1000+12 3000+1 2000+10"
)

// recordedExtents are what recordTouch comes to, by page and number.
var recordedExtents = [][2]int64{{7, 3}, {1000, 12}, {2000, 10}, {3000, 1}}

// newRecordSite is a site whose snapshot has memory that is worth a set.
func newRecordSite(t *testing.T, format string) *site {
	s := newSite(t)
	memory := make([]byte, recordPages*workingset.PageSize)
	rand.NewChaCha8([32]byte{7}).Read(memory)
	disk := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{8}).Read(disk)
	s.push("recorded", artifacttest.Snapshot([]artifacttest.File{
		{Name: "config.json", Data: []byte("{}")}, {Name: "memory-ranges", Data: memory}, {Name: "cow.raw", Data: disk},
	}, artifacttest.Options{Envelope: artifacttest.Envelope}))
	if format != formatV1 {
		s.run("epochfs", "convert", "--format", format, s.front.Host+"/recorded", s.front.Host+"/recorded:"+format)
	}
	s.ref = s.front.Host + "/recorded:" + format
	if format == formatV1 {
		s.ref = s.front.Host + "/recorded"
	}
	return s
}

func (s *site) push(name string, a *artifacttest.Artifact) {
	s.t.Helper()
	g := &globals{plainHTTP: true}
	cfg, err := g.config(0)
	must(s.t, err)
	ref, err := cfg.Reference(s.front.Host + "/" + name)
	must(s.t, err)
	reg, err := cfg.Registry(ref)
	must(s.t, err)
	defer reg.Close()
	must(s.t, a.Push(s.t.Context(), reg, name, "latest"))
}

// forget gives the site an empty cache, as another node has.
func (s *site) forget(name string) {
	for i, kv := range s.env {
		if strings.HasPrefix(kv, "EPOCHFS_CACHE_DIR=") {
			s.env[i] = "EPOCHFS_CACHE_DIR=" + filepath.Join(s.dir, name)
		}
	}
}

func pagesOf(set *workingset.Set, title string) (all [][2]int64) {
	for _, f := range set.Files {
		if f.Title != title {
			continue
		}
		for _, e := range f.Extents {
			if n := len(all); n > 0 && all[n-1][0]+all[n-1][1] == e.Page { // another stage
				all[n-1][1] += e.Pages
				continue
			}
			all = append(all, [2]int64{e.Page, e.Pages})
		}
	}
	return all
}

// readSetFile returns the set in a file, which must be one.
func readSetFile(t *testing.T, name string) *workingset.Set {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	set, err := workingset.Decode(data)
	must(t, err)
	return set
}

// TestRecordAndReplay records what a program touches, to the page, pushes it,
// and starts the program from another cache: all that it touches is local
// before it begins, and it needs the registry no more.
func TestRecordAndReplay(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	for _, format := range []string{formatV1, formatV2, formatPacked} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			s := newRecordSite(t, format)
			touches := strings.Fields(recordTouch)
			command := slices.Concat([]string{"--", "toucher", "{}/memory-ranges"}, touches)
			file := filepath.Join(s.dir, "set")
			s.run("epochfs", slices.Concat([]string{"record", "--runs", "2", "-o", file, s.ref}, command)...)
			set := readSetFile(t, file)
			if got := pagesOf(set, "memory-ranges"); !reflect.DeepEqual(got, recordedExtents) || set.Runs != 2 || set.Partial {
				t.Fatalf("%d recordings of %v, want 2 of %v", set.Runs, got, recordedExtents)
			}
			s.run("epochfs", "record", "--push", s.ref, file)
			s.forget("another")
			s.run("epochfs", "mount", "--wait", "working-set", s.ref, s.mnt)
			w := s.status().WorkingSet
			if w == nil || !w.Ready || w.FoundBy != "manifest" || w.Recorded != set.Bytes() || w.Local != w.Recorded {
				t.Fatalf("%+v, want %d bytes", w, set.Bytes())
			}
			s.stored()
			before := s.status().Reads
			s.front.Reset()
			s.run("toucher", slices.Concat([]string{filepath.Join(s.mnt, "memory-ranges")}, touches)...)
			after := s.status()
			if n := after.Reads.Misses - before.Misses; n > 0 {
				t.Errorf("%d reads had to wait for the network", n)
			}
			if w := after.WorkingSet; w.Late != 0 || w.Used+w.Stored < w.Recorded {
				t.Errorf("after the start: %+v", w)
			}
			s.takenOver()
			s.run("epochfs", "umount", s.mnt)
			s.secondStart(touches)
		})
	}
}

// takenOver kills the process of the mount: the next one replays the set, from
// the cache.
func (s *site) takenOver() {
	s.t.Helper()
	worker := s.status().PID
	must(s.t, unix.Kill(worker, unix.SIGKILL))
	s.front.Reset()
	eventually(s.t, "another process has replayed the set", func() bool {
		m := s.status()
		return m.PID != 0 && m.PID != worker && m.WorkingSet != nil && m.WorkingSet.Ready && m.WorkingSet.Local == m.WorkingSet.Recorded
	})
	for _, r := range s.front.Requests() {
		if strings.Contains(r.Path, "/referrers/") || r.IsBlob() {
			s.t.Errorf("the process that took over asked for %s", r.Path)
		}
	}
}

// stored returns when the kernel has the pages of the set, though nobody has
// looked at the files.
func (s *site) stored() {
	s.t.Helper()
	var w *control.WorkingSet
	if !poll(func() bool { w = s.status().WorkingSet; return w.Stored >= w.Recorded }) {
		s.t.Fatalf("the kernel does not get the pages: %+v", w)
	}
}

// secondStart mounts again without a registry, and starts again.
func (s *site) secondStart(touches []string) {
	s.t.Helper()
	s.front.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Status: 503})
	s.front.Inject(&registrytest.Fault{Match: registrytest.Path("/referrers/"), Status: 503})
	s.front.Inject(&registrytest.Fault{Match: registrytest.Path("/manifests/sha256"), Status: 503})
	s.front.Reset()
	s.run("epochfs", "mount", "--wait", "working-set", s.ref, s.mnt)
	if w := s.status().WorkingSet; w == nil || !w.Ready {
		s.t.Errorf("the second time: %+v", w)
	}
	s.stored()
	s.run("toucher", slices.Concat([]string{filepath.Join(s.mnt, "memory-ranges")}, touches)...)
	for _, r := range s.front.Requests() {
		if r.Path != "/v2/" && !strings.HasPrefix(r.Path, "/v2/recorded/manifests/") {
			s.t.Errorf("the second mount asked for %s", r.Path)
		}
	}
	s.front.Clear()
	s.run("epochfs", "umount", s.mnt)
}

// TestRecordKilled kills the process that records. What it has recorded is
// there, marked as partial, and is not pushed.
func TestRecordKilled(t *testing.T) {
	tier.Long(t, "mounts, and kills the process behind")
	t.Parallel()
	s := newRecordSite(t, formatV1)
	file := filepath.Join(s.dir, "set")
	s.run("epochfs", "mount", "--record", file, s.ref, s.mnt)
	if set := readSetFile(t, file); !set.Partial || len(set.Files) > 0 {
		t.Errorf("before the first touch: %+v", set)
	}
	cmd := exec.Command("toucher", filepath.Join(s.mnt, "memory-ranges"), "1000+12", "stay")
	cmd.Env = s.env
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	eventually(t, "what was touched is on disk", func() bool {
		got := pagesOf(readSetFile(t, file), "memory-ranges")
		return reflect.DeepEqual(got, [][2]int64{{1000, 12}})
	})
	worker := s.status().PID
	must(t, unix.Kill(worker, unix.SIGKILL))
	eventually(t, "another process serves", func() bool {
		m := s.status()
		return m.PID != 0 && m.PID != worker
	})
	before := s.front.Counts()
	if code, _, stderr := s.try("epochfs", "record", "--push", s.ref, file); code != exitFailed || strings.Count(stderr, "\n") != 1 {
		t.Errorf("pushed: exit code %d: %s", code, stderr)
	}
	if n := s.front.Counts().Received - before.Received; n > 0 {
		t.Errorf("%d bytes were sent", n)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "unmounted", func() bool { code, _, _ := s.try("epochfs", "umount", s.mnt); return code == 0 })
	if set := readSetFile(t, file); !set.Partial || !reflect.DeepEqual(pagesOf(set, "memory-ranges"), [][2]int64{{1000, 12}}) {
		t.Errorf("in the end: %+v", set)
	}
}

// TestRecordEnds has a recording end by itself: by its window, and when it is
// quiet, with a command that goes on.
func TestRecordEnds(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	for name, flags := range map[string][]string{
		"window": {"--window", "400ms", "--quiet", "0"},
		"quiet":  {"--window", "1h", "--quiet", "200ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newRecordSite(t, formatV1)
			out := s.run("epochfs", slices.Concat([]string{"--json", "record"}, flags, []string{s.ref, "--", "sh", "-c", "toucher {}/memory-ranges 7+3 stay & wait"})...)
			var got recorded
			must(t, json.Unmarshal([]byte(out), &got))
			if got.Size != 3*workingset.PageSize || got.Data != got.Size || got.Runs != 1 || got.Partial {
				t.Errorf("%+v", got)
			}
			// It is the answer of this machine's cache.
			s.front.Reset()
			s.run("epochfs", "mount", "--wait", "working-set", s.ref, s.mnt)
			if w := s.status().WorkingSet; w == nil || !w.Ready || w.FoundBy != "recording" || w.Local != got.Size {
				t.Errorf("the next mount: %+v", w)
			}
			s.run("epochfs", "umount", s.mnt)
		})
	}
}

// TestRecordAll records a command that reads nearly everything, which is worth
// one more line than one that does not.
func TestRecordAll(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newRecordSite(t, formatV1)
	lines := map[string]int{}
	for _, command := range []string{"cat {}/config.json", "cat {}/memory-ranges"} {
		code, out, stderr := s.try("epochfs", "--json", "record", s.ref, "--", "sh", "-c", command+" >/dev/null")
		var got recorded
		must(t, json.Unmarshal([]byte(out), &got))
		if all := strings.HasSuffix(command, "memory-ranges"); code != 0 || (got.Data == recordPages*workingset.PageSize) != all {
			t.Errorf("%s: exit code %d, %+v: %s", command, code, got, stderr)
		}
		lines[command] = strings.Count(stderr, "\n")
	}
	if lines["cat {}/memory-ranges"] != lines["cat {}/config.json"]+1 {
		t.Errorf("lines: %v", lines)
	}
}

// TestRecordRefuses has wrong usage, commands that fail or touch nothing, and
// sets that must not be used.
func TestRecordRefuses(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newRecordSite(t, formatV1)
	bad := filepath.Join(s.dir, "bad")
	must(t, os.WriteFile(bad, bytes.Repeat([]byte("bad"), 1000), 0o600))
	for _, c := range []struct {
		code int
		args string
	}{
		{exitUsage, "record"},
		{exitUsage, "record REF"},
		{exitUsage, "record REF -- true"},
		{exitUsage, "record --runs 0 REF -- ls {}"},
		{exitUsage, "record --window 0 REF -- ls {}"},
		{exitUsage, "record --push -o set REF -- ls {}"},
		{exitUsage, "mount --wait something REF DIR"},
		{exitUsage, "mount -f --wait working-set REF DIR"},
		{exitUsage, "mount --prefetch none --wait working-set REF DIR"},
		{exitUsage, "mount --working-set none --wait working-set REF DIR"},
		{exitUsage, "mount --record-window 0 --record set REF DIR"},
		{exitUsage, "mount --prefetch some REF DIR"},
		{exitUsage, "mount --record DIR/set REF DIR"}, // behind the mount
		{exitFailed, "record REF -- false {}"},
		{exitFailed, "record REF -- true {}"},
		{exitFailed, "record REF -- /no/such/program {}"},
		{exitContent, "record REF " + bad},
		{exitNotFound, "record REF " + bad + "-not"},
		{exitNotFound, "mount --working-set ./not REF DIR"},
		{exitDisk, "mount --record /proc/not/there REF DIR"},
	} {
		args := strings.Fields(strings.NewReplacer("REF", s.ref, "DIR", s.mnt).Replace(c.args))
		if code, out, stderr := s.try("epochfs", args...); code != c.code || out != "" || stderr == "" {
			t.Errorf("%s: exit code %d, want %d: %s%s", c.args, code, c.code, out, stderr)
		}
	}
	// A hint never fails a mount.
	for _, set := range []string{bad, s.front.Host + "/no/such:set"} {
		s.run("epochfs", "mount", "--working-set", set, s.ref, s.mnt)
		eventually(t, "the set is refused", func() bool {
			w := s.status().WorkingSet
			return w != nil && w.State == control.SetNone && w.Error != ""
		})
		if _, err := os.ReadFile(filepath.Join(s.mnt, "memory-ranges")); err != nil {
			t.Error(err)
		}
		s.run("epochfs", "umount", s.mnt)
	}
}

// TestInheritedSets has convert copy a set, and push --base hand one on, to a
// child whose memory is another.
func TestInheritedSets(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newRecordSite(t, formatV1)
	s.run("epochfs", slices.Concat([]string{"record", "--push", s.ref, "--", "toucher", "{}/memory-ranges"}, strings.Fields(recordTouch))...)
	packed := s.front.Host + "/recorded:packed"
	s.run("epochfs", "convert", "--format", "packed", s.ref, packed)
	child := s.front.Host + "/recorded:child"
	tar := filepath.Join(s.dir, "child.tar")
	s.run("epochfs", "materialize", "-o", tar, packed)
	data, err := os.ReadFile(tar)
	must(t, err)
	// One page of the memory is another one in the child.
	at := bytes.Index(data, memoryPage(5))
	if at < 0 {
		t.Fatal("the memory is not in the tar")
	}
	data[at]++
	must(t, os.WriteFile(tar, data, 0o600))
	s.run("epochfs", "push", "--format", "packed", "--base", packed, "--input", tar, child)
	for _, ref := range []string{packed, child} {
		var got struct {
			WorkingSet *inspectedSet `json:"working_set"`
		}
		must(t, json.Unmarshal([]byte(s.run("epochfs", "inspect", "--json", ref)), &got))
		if w := got.WorkingSet; w == nil || w.FoundBy != "manifest" || w.Size != 26*workingset.PageSize || w.Runs != 1 {
			t.Errorf("%s has %+v", ref, w)
		}
	}
}

// memoryPage returns a page of the memory of newRecordSite.
func memoryPage(n int) []byte {
	memory := make([]byte, (n+1)*workingset.PageSize)
	rand.NewChaCha8([32]byte{7}).Read(memory)
	return memory[n*workingset.PageSize:]
}

// TestMountDoesNotWaitForSet has a registry that does not answer when it is
// asked for a working set: the mount is ready, is read, and ends all the same.
func TestMountDoesNotWaitForSet(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newRecordSite(t, formatV1)
	s.front.Inject(&registrytest.Fault{Match: registrytest.Path("/referrers/"), Delay: 24 * time.Hour})
	s.run("epochfs", "mount", s.ref, s.mnt)
	if _, err := os.ReadFile(filepath.Join(s.mnt, "memory-ranges")); err != nil {
		t.Error(err)
	}
	if w := s.status().WorkingSet; w == nil || w.State != control.SetLooking || w.Ready {
		t.Errorf("%+v", w)
	}
	s.run("epochfs", "umount", s.mnt)
}
