package snapshot_test

import (
	"context"
	"io"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func BenchmarkLoad(b *testing.B) {
	store := artifacttest.NewStore()
	store.Add("vm", "latest", artifacttest.Snapshot([]artifacttest.File{fragmented(b, 30000)}, artifacttest.Options{}))
	for b.Loop() {
		if _, err := snapshot.Load(b.Context(), store, "vm", "latest", snapshot.LoadOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteTar(b *testing.B) {
	for name, o := range map[string]artifacttest.Options{"v1": {}, "zstd": {Zstd: true, Chunk: 4 * mib}} {
		b.Run(name, func(b *testing.B) {
			art, store := mustLoad(b, artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: pattern(64 * mib)}}, o))
			b.SetBytes(64 * mib)
			for b.Loop() {
				if err := art.WriteTar(b.Context(), io.Discard, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPush(b *testing.B) {
	export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "memory-ranges", Data: pattern(64 * mib)}})
	for how, input := range inputs(export) {
		b.Run(how, func(b *testing.B) {
			b.SetBytes(64 * mib)
			for b.Loop() {
				if _, err := pushTo(b, discarding{artifacttest.NewStore()}, input()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// discarding takes bytes and keeps none.
type discarding struct{ snapshot.Uploader }

func (d discarding) PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	if size < mib {
		return d.Uploader.PutBlob(ctx, name, digest, body, size)
	}
	_, err := io.Copy(io.Discard, body)
	return err
}
