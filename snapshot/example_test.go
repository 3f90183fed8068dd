package snapshot_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// Load reads what an artifact consists of, and WriteTar writes it as the tar
// that cocoon imports. Anything that is a Downloader can stand for the
// registry; this one holds its blobs in memory.
func ExampleLoad() {
	ctx := context.Background()
	var registry snapshot.Downloader = sample()
	a, err := snapshot.Load(ctx, registry, "team/vm", "v1", snapshot.LoadOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range a.Files {
		fmt.Printf("%s: %d bytes, %d of them data\n", f.Name, f.Size(), f.PayloadSize())
	}
	var out bytes.Buffer
	payloads := snapshot.DownloaderPayloads(registry, "team/vm")
	if err := a.WriteTar(ctx, &out, payloads, snapshot.TarOptions{LocalName: "copy"}); err != nil {
		fmt.Println(err)
		return
	}
	for r := tar.NewReader(&out); ; {
		hdr, err := r.Next()
		if err != nil {
			break
		}
		fmt.Println("entry", hdr.Name)
	}
	// Output:
	// config.json: 10 bytes, 10 of them data
	// state.json: 2 bytes, 2 of them data
	// entry snapshot.json
	// entry config.json
	// entry state.json
}

// Push uploads an export of cocoon's to anything that is an Uploader. With
// Packed it sends only what its base does not have.
func ExamplePusher() {
	registry := artifacttest.NewStore()
	export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "cow.raw", Data: make([]byte, 2<<20)}})
	p := snapshot.Pusher{Uploader: registry}
	res, err := p.Push(context.Background(), snapshot.PushOptions{
		Name: "team/vm", Tag: "v1", Input: bytes.NewReader(export), Packed: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Format, res.LayerCount, "layers")
	// Output: packed 2 layers
}

// sample is a registry with one snapshot.
func sample() *artifacttest.Store {
	store := artifacttest.NewStore()
	store.Add("team/vm", "v1", artifacttest.Snapshot([]artifacttest.File{
		{Name: "config.json", Data: []byte(`{"cpus":1}`)},
		{Name: "state.json", Data: []byte(`{}`)},
	}, artifacttest.Options{}))
	return store
}
