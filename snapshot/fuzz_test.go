package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// configsOfFixtures are the config blobs of artifacts that other tools
// made, and whether they are of format v2.
func configsOfFixtures(t testing.TB) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, dir := range []string{"epoch-artifact", "v2-artifacts"} {
		blobs, err := filepath.Glob(filepath.Join("testdata", dir, "blobs", "sha256", "*"))
		if err != nil || len(blobs) == 0 {
			t.Fatalf("%s: %v", dir, err)
		}
		for _, name := range blobs {
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var cfg manifest.SnapshotConfig
			if json.Unmarshal(raw, &cfg) == nil && cfg.SchemaVersion != "" {
				all[string(raw)] = cfg.SchemaVersion == "v2"
			}
		}
	}
	if len(all) < 2 {
		t.Fatalf("%d config blobs among the fixtures", len(all))
	}
	return all
}

// chunkLayers are the blobs that FuzzLayout has chunks made of. Sizes of
// raw ones are what their chunks hold.
func chunkLayers(rawLast int64, stride int64) []manifest.Descriptor {
	layer := func(i int, mediaType string, size int64) manifest.Descriptor {
		return manifest.Descriptor{
			MediaType: mediaType, Digest: fmt.Sprintf("sha256:%064x", i), Size: size,
			Annotations: map[string]string{manifest.AnnotationTitle: "memory-ranges"},
		}
	}
	frame := manifest.MediaTypeVMMemory + manifest.SuffixZstd
	return []manifest.Descriptor{
		layer(1, frame, 100), layer(2, frame, 5), layer(3, manifest.MediaTypeVMMemory, stride),
		layer(4, manifest.MediaTypeVMMemory, rawLast), layer(5, frame, 70), layer(6, "application/x-lz4", 9),
	}
}

// possibleStrides is every chunk size that cuts size bytes into n chunks.
func possibleStrides(size, n int64) (all []int64) {
	for s := int64(chunkUnit); s < size+chunkUnit; s += chunkUnit {
		if (size+s-1)/s == n {
			all = append(all, s)
		}
	}
	return all
}

// fits says that chunks of s bytes agree with all that is known of them.
func fits(s, size int64, chunks []manifest.Descriptor) bool {
	lengths := map[string]int64{}
	for i, d := range chunks {
		length := min(s, size-int64(i)*s)
		if before, twice := lengths[d.Digest]; twice && before != length || isRaw(d) && d.Size != length {
			return false
		}
		lengths[d.Digest] = length
	}
	return true
}

func isRaw(d manifest.Descriptor) bool { return d.MediaType == manifest.MediaTypeVMMemory }

// FuzzLayout cuts a file of format v2 into any chunks, and compares what
// comes out with a look at every chunk size that there could be.
func FuzzLayout(f *testing.F) {
	f.Add([]byte{0, 1, 4}, int64(3<<20-5), int64(1<<20), int64(7), int64(1<<20))
	f.Add([]byte{2, 2, 3}, int64(5<<20), int64(2<<20), int64(1<<20), int64(0))
	f.Add([]byte{0, 1}, int64(100<<20), int64(64<<20), int64(7), int64(64<<20))
	f.Add([]byte{0, 0, 0, 1}, int64(100<<20), int64(64<<20), int64(7), int64(1<<40))
	f.Add([]byte{3}, int64(77), int64(1), int64(77), int64(0))
	f.Add([]byte{5, 0}, int64(2<<20), int64(1), int64(1), int64(1<<20))
	f.Fuzz(func(t *testing.T, order []byte, size, stride, rawLast, hint int64) {
		size &= 1<<31 - 1
		layers := chunkLayers(max(rawLast&(1<<31-1), 1), max(stride&(1<<31-1), 1))
		if len(order) == 0 || len(order) > 200 {
			return
		}
		meta := manifest.SnapshotFile{Size: size}
		var chunks, used []manifest.Descriptor
		for _, b := range order {
			d := layers[int(b)%len(layers)]
			chunks = append(chunks, d)
			meta.Chunks = append(meta.Chunks, d.Digest)
			if !slices.ContainsFunc(used, func(u manifest.Descriptor) bool { return u.Digest == d.Digest }) {
				used = append(used, d)
			}
		}
		set, err := collectLayers(used)
		if err != nil {
			t.Fatal(err)
		}
		cfg := &manifest.SnapshotConfig{SchemaVersion: "v2", Files: map[string]manifest.SnapshotFile{"memory-ranges": meta}}
		b := &builder{cfg: cfg, layers: set, hint: func(*layout.Part) (int64, error) { return hint, nil }}
		files, err := b.build(b.partsV2)
		if err != nil && !errors.Is(err, layout.ErrContent) {
			t.Fatal(err)
		}
		if want, ok := naiveParts(size, hint, chunks); ok != (err == nil) {
			t.Fatalf("%d bytes in %v: %v, want %v", size, meta.Chunks, err, want)
		} else if ok {
			holdsTogether(t, files[0])
			for i, p := range files[0].Parts {
				if p.Length != want[i] || p.Digest != chunks[i].Digest || p.StoredSize != chunks[i].Size {
					t.Fatalf("part %d is %+v, want %d bytes of %+v", i, p, want[i], chunks[i])
				}
			}
		}
	})
}

// naiveParts is how much each chunk holds, if that can be told: one chunk
// size fits, or several do and the first frame's header says which.
func naiveParts(size, hint int64, chunks []manifest.Descriptor) (lengths []int64, ok bool) {
	for _, d := range chunks {
		if d.MediaType == "application/x-lz4" {
			return nil, false
		}
	}
	if len(chunks) == 1 {
		return []int64{size}, !isRaw(chunks[0]) || chunks[0].Size == size
	}
	all := possibleStrides(size, int64(len(chunks)))
	if len(all) > 1 && !slices.ContainsFunc(chunks, isRaw) {
		all = slices.DeleteFunc(all, func(s int64) bool { return s != hint })
	}
	all = slices.DeleteFunc(all, func(s int64) bool { return !fits(s, size, chunks) })
	if len(all) != 1 {
		return nil, false
	}
	for i := range chunks {
		lengths = append(lengths, min(all[0], size-int64(i)*all[0]))
	}
	return lengths, true
}
