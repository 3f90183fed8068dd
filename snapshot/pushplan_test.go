package snapshot

import (
	"bytes"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// shippedSmallBlob is what smallBlob is elsewhere.
var shippedSmallBlob = smallBlob

// A file need not be large here to be streamed.
func init() { smallBlob = 2 << 20 }

// A blob of up to 16 MiB goes up with its digest, a larger one as a stream.
func TestSmallBlob(t *testing.T) {
	defer func(here int64) { smallBlob = here }(smallBlob)
	smallBlob = shippedSmallBlob
	data := make([]byte, 16<<20+1)
	artifacttest.Fill(data, 1)
	files := []artifacttest.File{{Name: "cow.raw", Data: data[1:]}, {Name: "memory-ranges", Data: data}}
	store := artifacttest.NewStore()
	input := io.MultiReader(bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, files)))
	if _, err := (&Pusher{Uploader: store}).Push(t.Context(), PushOptions{Name: "vm", Input: input}); err != nil {
		t.Fatal(err)
	}
	if put, streamed := store.Calls("PutBlob"), store.Calls("UploadBlob"); put != 2 || streamed != 1 { // with the config
		t.Errorf("%d blobs were put, %d streamed", put, streamed)
	}
	for _, f := range files {
		if !bytes.Equal(store.Blob(digests.Of(f.Data)), f.Data) {
			t.Errorf("%s is not there", f.Name)
		}
	}
}

// A tar that can seek gets the smallest power of two MiB, 4 MiB at least,
// that leaves fewer than 2,000 layers; a stream never more than that.
func TestChunkPlan(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		sizes []int64
		want  int64
	}{
		{[]int64{100}, 4 * mib},
		{[]int64{1999 * 4 * mib}, 4 * mib},
		{[]int64{2000 * 4 * mib}, 8 * mib},
		{[]int64{1998 * 4 * mib, 5}, 4 * mib},
		{[]int64{1998 * 4 * mib, 4*mib + 1}, 8 * mib},
		{[]int64{8 * gib, 10 * gib, 100}, 16 * mib},
		{[]int64{1 << 42}, 4096 * mib},
	} {
		p := newChunkPlan(0, c.sizes)
		for _, s := range c.sizes {
			if got, err := p.next("x.raw", s, &envelopeConfig{}); got != c.want || err != nil {
				t.Errorf("%v: %d, %v", c.sizes, got, err)
			}
		}
	}
	p := newChunkPlan(0, nil)
	env := &envelopeConfig{Memory: 16 * gib, Storage: 40 * gib}
	for _, f := range []struct {
		name string
		size int64
	}{{"config.json", 100}, {"cow.raw", 40 * gib}, {"memory-ranges", 16 * gib}, {"state.json", 1 << 17}} {
		if _, err := p.next(f.name, f.size, env); err != nil {
			t.Fatal(err)
		}
	}
	if p.layers >= fewLayers || p.layers < fewLayers/4 {
		t.Errorf("%d layers", p.layers)
	}
	for _, size := range []int64{12000 * mib, 1 << 50} {
		if _, err := newChunkPlan(mib, nil).next("x", size, env); err == nil {
			t.Error("a manifest of more than 4 MiB")
		}
	}
}

// Snapshots of all sizes, of one file or hundreds, have fewer than 2,000
// layers by the smallest chunk size that does it; registries take the
// manifest, and readers find that size again.
func TestChunkPlanOfAnySize(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	tries := 60
	if testing.Short() {
		tries = 12
	}
	for try := range tries {
		sizes := make([]int64, 1+rng.IntN(1+int(rng.Uint32()%1500)))
		for i := range sizes {
			sizes[i] = rng.Int64N(1 << (1 + rng.IntN(46)))
		}
		p := newChunkPlan(0, sizes)
		var chunk, layers, half int64
		for i, size := range sizes {
			var err error
			if chunk, err = p.next(anyName(i), size, &envelopeConfig{}); err != nil {
				t.Fatal(err)
			}
			layers += layerCount(size, chunk)
			half += layerCount(size, chunk/2)
			if n := layerCount(size, chunk); n > 1 {
				lo, hi := strides(size, n)
				if chunk < lo || chunk > hi || chunk > (size-1)/(n-1)+1 {
					t.Fatalf("%d bytes in chunks of %d: readers look from %d to %d", size, chunk, lo, hi)
				}
			}
		}
		if bits.OnesCount64(uint64(chunk)) != 1 || chunk < leastChunk || layers >= fewLayers || chunk > leastChunk && half < fewLayers {
			t.Fatalf("%d files: %d layers by chunks of %d", len(sizes), layers, chunk)
		}
		if try%30 == 0 {
			checkManifestSize(t, sizes, chunk, p.text)
		}
	}
}

// anyName is a name as long as they may be, of characters that JSON makes
// longer.
func anyName(i int) string { return fmt.Sprintf("%03d%s.raw", i, strings.Repeat("<", 248)) }

// checkManifestSize writes the manifest.
func checkManifestSize(t *testing.T, sizes []int64, chunk, most int64) {
	t.Helper()
	u := &push{opts: &PushOptions{}}
	for i, size := range sizes {
		f := &storedFile{name: anyName(i), size: size, encoded: true, layers: make([]manifest.Descriptor, layerCount(size, chunk))}
		f.split = len(f.layers) > 1
		for j := range f.layers {
			f.layers[j] = f.layer(j, digests.Of(nil), min(chunk, size))
		}
		u.stored = append(u.stored, f)
	}
	raw, err := u.manifest(manifest.Descriptor{})
	if err != nil || int64(len(raw)) > most+manifestAside {
		t.Fatalf("%d files: a manifest of %d bytes, counted were %d, %v", len(sizes), len(raw), most, err)
	}
}

// Of a stream not all is known beforehand. What the envelope does not tell
// of finds layers left, whenever it comes.
func TestChunkPlanOfAStream(t *testing.T) {
	const gib = 1 << 30
	told := &envelopeConfig{Memory: 16 * gib, Storage: 40 * gib}
	for name, env := range map[string]*envelopeConfig{"told": told, "not told": {}} {
		for disks := range 30 {
			p := newChunkPlan(0, nil)
			next := func(name string, size int64) (layers int64) {
				chunk, err := p.next(name, size, env)
				if err != nil || bits.OnesCount64(uint64(chunk)) != 1 {
					t.Fatal(chunk, err)
				}
				return layerCount(size, chunk)
			}
			next("config.json", 100)
			next("cow.raw", 40*gib)
			next("memory-ranges", 16*gib)
			for i := range disks {
				if n := next(fmt.Sprintf("vd%c.qcow2", 'b'+i), 10*gib); i < 3 && n < 8 {
					t.Errorf("%s: disk %d of %d has %d layers", name, i, disks, n)
				}
			}
			for i := range 10 {
				next(fmt.Sprint(i), 1<<17)
			}
			if p.layers >= fewLayers {
				t.Errorf("%s: %d layers with %d disks more", name, p.layers, disks)
			}
		}
	}
}

// Buffers of all sizes stay within the memory asked for.
func TestChunkBuffers(t *testing.T) {
	for _, zstd := range []int{0, 3} {
		for _, memory := range []int64{0, 96 << 20, 256 << 20, 1 << 30} {
			c, err := newChunker(t.Context(), nil, &push{opts: &PushOptions{Zstd: zstd, Memory: memory}, src: &source{export: &exportReader{}}})
			if err != nil {
				t.Fatal(err)
			}
			for size := int64(1 << 20); size <= 1<<30; size *= 2 {
				raws, frames := c.buffers(size)
				held := int64(raws+frames) * size
				if zstd == 0 {
					held = int64(raws) * size
				}
				most := memory
				if most == 0 {
					most = defaultMemory
				}
				if raws < 0 || (raws == 0) != (frames == 0) || held > most*3/4 {
					t.Errorf("%d bytes of memory, chunks of %d: %d and %d buffers", memory, size, raws, frames)
				}
			}
		}
	}
}
