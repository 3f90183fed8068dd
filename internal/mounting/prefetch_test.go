package mounting

import (
	"bytes"
	"path"
	"slices"
	"testing"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// TestPrefetchOrder has memory fetched before disks, and small files before
// both, whatever the artifact's order.
func TestPrefetchOrder(t *testing.T) {
	t.Parallel()
	large := func(b byte) []byte { return bytes.Repeat([]byte{b}, 2<<20) }
	p := newPlace(t, registrytest.NewHandler(), artifacttest.Snapshot([]artifacttest.File{
		{Name: "disk.raw", Data: large('d')},
		{Name: "memory-ranges", Data: large('m')},
		{Name: "config.json", Data: []byte("{}")},
		{Name: "cow.qcow2", Data: large('c')},
		{Name: "mem", Data: large('M')},
		{Name: "state.json", Data: []byte("{ }")},
	}, artifacttest.Options{}))
	p.cfg.Concurrency = 1
	o := p.mustOpen(p.ref)
	for which, want := range map[Prefetch][]string{
		PrefetchNone:  nil,
		PrefetchSmall: {"config.json", "state.json"},
		PrefetchAuto:  {"config.json", "state.json"},
		PrefetchAll:   {"config.json", "state.json", "memory-ranges", "mem", "disk.raw", "cow.qcow2"},
	} {
		var got []string
		for _, f := range prefetched(o.Artifact.Files, which) {
			got = append(got, f.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", which, got, want)
		}
	}
	p.front.Reset()
	if err := o.Prefetch(PrefetchAll); err != nil {
		t.Fatal(err)
	}
	p.poll("everything is local", func() bool {
		sizes, err := o.Sizes()
		return err == nil && sizes.Local == sizes.Data
	}, func() {})
	named := map[string]string{}
	for _, f := range o.Artifact.Files {
		named[f.Digest()] = f.Name
	}
	var begun []string
	for _, r := range p.front.Requests() {
		if name := named[path.Base(r.Path)]; r.IsBlob() && !slices.Contains(begun, name) {
			begun = append(begun, name)
		}
	}
	if want := []string{"config.json", "state.json", "memory-ranges", "mem", "disk.raw", "cow.qcow2"}; !slices.Equal(begun, want) {
		t.Errorf("fetched in the order %v, want %v", begun, want)
	}
}
