package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
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
