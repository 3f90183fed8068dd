package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// firecracker FILE: an export tar of a Firecracker snapshot, whose memory is
// called mem. Its envelope lists its files, and its disk is as large as it says.
func firecracker(ts *testscript.TestScript, _ bool, args []string) {
	rng := rand.New(rand.NewPCG(7, 1))
	files := []artifacttest.File{
		{Name: "vmstate", Data: []byte("the state of a VM")}, half(rng, "mem", 24<<20), half(rng, "cow.raw", 8<<20),
		{Name: "cocoon.json", Data: []byte("{}")}, artifacttest.RandomFile(rng, "data-logs.raw", 1<<20),
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	text, err := json.Marshal(map[string]any{
		"version": 1, "files": names,
		"config": map[string]any{
			"id": "fc", "name": "fc", "hypervisor": "firecracker", "cpu": 2, "memory": 24 << 20, "storage": 8 << 20, "nic_mtus": []int{9000},
		},
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), artifacttest.Tar(string(text), files), 0o600))
}

// half is a file of random bytes of which every other MiB is a hole.
func half(rng *rand.Rand, name string, size int64) artifacttest.File {
	f := artifacttest.File{Name: name, Data: make([]byte, size)}
	var segments []sparse.Segment
	for at := int64(0); at < size; at += 2 << 20 {
		artifacttest.Fill(f.Data[at:at+1<<20], rng.Uint64())
		segments = append(segments, sparse.Segment{Offset: at, Length: 1 << 20})
	}
	var err error
	if f.Map, err = sparse.New(segments, size); err != nil {
		panic(err)
	}
	return f
}

// amend REPO TAG KEY=VALUE: the tag names another manifest, which has an
// annotation more and the same layers.
func (w *world) amend(ts *testscript.TestScript, _ bool, args []string) {
	cfg := mounting.Config{EpochServer: w.front.URL, EpochToken: epochToken}
	ref, err := cfg.Reference(w.front.Host + "/" + args[0] + ":" + args[1])
	ts.Check(err)
	reg, err := cfg.Registry(ref)
	ts.Check(err)
	defer reg.Close()
	raw, _, err := reg.GetManifest(context.Background(), args[0], args[1])
	ts.Check(err)
	m, err := manifest.Parse(raw)
	ts.Check(err)
	key, value, _ := strings.Cut(args[2], "=")
	m.Annotations[key] = value
	raw, err = json.Marshal(m)
	ts.Check(err)
	ts.Check(reg.PutManifest(context.Background(), args[0], args[1], raw, manifest.MediaTypeOCIManifest))
}

// google: from now on HTTPS goes to a registry that believes to be
// us-docker.pkg.dev, before the script's own, and this is a machine in Google's
// cloud.
func (w *world) google(ts *testscript.TestScript, _ bool, _ []string) {
	const host = "us-docker.pkg.dev"
	backend, err := url.Parse(w.front.URL)
	ts.Check(err)
	g := &registrytest.GoogleRegistry{Realm: "https://" + host + "/token", Backend: &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(backend)
		p.Out.Header.Del("Authorization")
	}}}
	ca := registrytest.NewCA(w.t)
	front := registrytest.NewTLSFront(w.t, g, ca.Config(w.t, host))
	ts.Setenv("EPOCH_CA_CERT", ca.File)
	ts.Setenv("HTTPS_PROXY", registrytest.Tunnel(w.t, strings.TrimPrefix(front.URL, "https://")))
	ts.Setenv("GCE_METADATA_HOST", registrytest.NewMetadata(w.t).Host)
}

// Many VMs that map the memory of one snapshot have one copy of it.
func TestVMsShareMemory(t *testing.T) {
	tier.Long(t, "mounts")
	t.Parallel()
	s := newSite(t)
	s.run("epochfs", "mount", s.ref, s.mnt)
	defer s.run("epochfs", "umount", s.mnt)
	path := filepath.Join(s.mnt, "memory-ranges")
	st, err := os.Stat(path)
	must(t, err)
	var shares, whole int64
	const vms = 8
	pids, stop := startMappers(t, vms, path)
	defer stop()
	for _, vm := range pids {
		pss, rss := mappedMemory(t, vm, path)
		shares, whole = shares+pss, whole+rss
	}
	if whole < vms*st.Size() || shares > st.Size()+st.Size()/50+vms<<10 { // each share is in KiB
		t.Errorf("%d mappings of %d bytes have %d bytes, and are charged for %d", vms, st.Size(), whole, shares)
	}
}

// startMappers starts processes that have mapped and touched all of a file. They
// end with stop.
func startMappers(t *testing.T, n int, path string) (pids []int, stop func()) {
	t.Helper()
	var stops []func()
	for range n {
		cmd := exec.Command("mapper", path, "touch")
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		stops = append(stops, func() {
			in.Close()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		})
		if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "mapped\n" {
			t.Fatalf("%s is not mapped: %q, %v", path, said, err)
		}
		pids = append(pids, cmd.Process.Pid)
	}
	return pids, func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// mappedMemory returns the memory of a process's mapping of a file, with what
// others map too divided among them and not, in bytes.
func mappedMemory(t *testing.T, pid int, path string) (pss, rss int64) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	must(t, err)
	defer f.Close()
	here := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		var kib int64
		switch {
		case len(w) > 1 && strings.Contains(w[0], "-"):
			here = w[len(w)-1] == path
		case here && w[0] == "Pss:":
			_, err = fmt.Sscan(w[1], &kib)
			pss += kib << 10
		case here && w[0] == "Rss:":
			_, err = fmt.Sscan(w[1], &kib)
			rss += kib << 10
		}
		must(t, err)
	}
	return pss, rss
}
