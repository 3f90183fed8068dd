package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/packedtest"
	"github.com/cocoonstack/epochfs/test/tier"
)

const hostileGranule = 16 << 10

type (
	editRaw      = func(x *packedtest.Raw)
	editArtifact = func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig)
)

// packedKind is something that a packed artifact must not be. Its one
// file, memory-ranges, has eight granules of random bytes in one pack.
type packedKind struct {
	raw      editRaw
	artifact editArtifact
	mark     byte                                             // changes the data, so that no other kind has that pack
	blobs    func(x *packedtest.Raw, blobs map[string][]byte) // after the index was made of it
}

func granules(change func(g []packedtest.RawGranule)) packedKind {
	return packedKind{raw: func(x *packedtest.Raw) { change(x.Sections[0].Granules) }}
}

func packedMeta(change func(f *manifest.SnapshotFile)) packedKind {
	return packedKind{artifact: func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		f := cfg.Files["memory-ranges"]
		change(&f)
		cfg.Files["memory-ranges"] = f
	}}
}

func packedLayers(change func(m *manifest.OCIManifest)) packedKind {
	return packedKind{artifact: func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { change(m) }}
}

func rawFile(change editRaw) packedKind { return packedKind{raw: change} }

// frames replaces the frame of the head or of the sections.
func frames(ofHead bool, make func(plain []byte) []byte) packedKind {
	return packedKind{raw: func(x *packedtest.Raw) {
		x.Frame = func(head bool, plain []byte) []byte {
			if head == ofHead {
				return make(plain)
			}
			return artifacttest.Frame(plain)
		}
	}}
}

// says is a frame whose header claims size bytes of content, in a window
// of as many bytes, and that holds plain in raw blocks.
func says(size uint64, plain []byte) []byte {
	b := append(binary.LittleEndian.AppendUint32(nil, 0xFD2FB528), 0xe0) // one segment, size in 8 bytes
	b = binary.LittleEndian.AppendUint64(b, size)
	for len(plain) > 0 {
		n := min(len(plain), 128<<10)
		head := uint32(n) << 3
		if n == len(plain) {
			head |= 1
		}
		b = append(append(b, byte(head), byte(head>>8), byte(head>>16)), plain[:n]...)
		plain = plain[n:]
	}
	return b
}

// bomb is a frame of size zeros.
func bomb(size int) []byte {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer enc.Close()
	var b bytes.Buffer
	enc.ResetContentSize(&b, int64(size))
	for n := 0; n < size; n += 1 << 20 {
		if _, err := enc.Write(make([]byte, min(1<<20, size-n))); err != nil {
			panic(err)
		}
	}
	if err := enc.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// granuleFrame replaces the frame of the first granule in its pack.
func granuleFrame(make func(plain []byte) []byte) packedKind {
	data := hostileData()
	return packedKind{raw: func(x *packedtest.Raw) {
		frame := make(data[:hostileGranule])
		g := x.Sections[0].Granules
		first := g[0]
		shift := int64(len(frame)) - first.Stored
		g[0].Stored = int64(len(frame))
		for i := range g[1:] {
			g[i+1].Offset += shift
		}
		x.Frame = nil
		pack := append(frame, packOf(data)[first.Stored:]...)
		x.Packs[0] = packedtest.RawPack{Sum: sha256.Sum256(pack), Size: uint64(len(pack))}
	}, blobs: func(x *packedtest.Raw, blobs map[string][]byte) {
		first := packedtest.NewRaw("x", data, hostileGranule, map[string][]byte{}).Sections[0].Granules[0]
		pack := append(make(data[:hostileGranule]), packOf(data)[first.Stored:]...)
		blobs[digests.Of(pack)] = pack
	}}
}

func packOf(data []byte) []byte {
	blobs := map[string][]byte{}
	packedtest.NewRaw("x", data, hostileGranule, blobs)
	for _, b := range blobs {
		return b
	}
	return nil
}

func hostileData() []byte {
	data := make([]byte, 8*hostileGranule)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range data {
		data[i] = byte(rng.Uint32()) & 0x3f
	}
	return data
}

// packedKinds are the hostile kinds of the packed format.
func packedKinds() map[string]packedKind {
	other := sha256.Sum256([]byte("another"))
	return map[string]packedKind{
		// The index's sections.
		"slices that overlap":      granules(func(g []packedtest.RawGranule) { g[1].Offset-- }),
		"one frame of two digests": granules(func(g []packedtest.RawGranule) { g[1].Offset, g[1].Stored = g[0].Offset, g[0].Stored }),
		"a slice before its pack":  granules(func(g []packedtest.RawGranule) { g[0].Offset = -1 }),
		"a slice beyond its pack":  granules(func(g []packedtest.RawGranule) { g[7].Offset++ }),
		"a slice at 2^62":          granules(func(g []packedtest.RawGranule) { g[7].Offset = 1 << 62 }),
		"a slice that overflows":   granules(func(g []packedtest.RawGranule) { g[7].Offset, g[7].Stored = 1<<63-8, 16 }),
		"a slice of 2^62 bytes":    granules(func(g []packedtest.RawGranule) { g[7].Stored = 1 << 62 }),
		"a slice of no bytes":      granules(func(g []packedtest.RawGranule) { g[7].Stored = 0 }),
		"a slice of no pack":       granules(func(g []packedtest.RawGranule) { g[7].Pack = 1 }),
		"a slice of pack -1":       granules(func(g []packedtest.RawGranule) { g[0].Pack = -1 }),
		"one digest of two lengths": {raw: func(x *packedtest.Raw) {
			g := x.Sections[0].Granules
			g[7].Sum = g[6].Sum
			x.Size--
			x.Data--
			x.Segments[0][1]--
		}},
		"a digest of other bytes": granules(func(g []packedtest.RawGranule) { g[0].Sum = other }),
		"too few granules": rawFile(func(x *packedtest.Raw) {
			x.Sections[0].Granules = x.Sections[0].Granules[:7]
		}),
		"fewer granules than it says": {raw: func(x *packedtest.Raw) {
			x.Sections[0].Granules, x.Sections[0].Count = x.Sections[0].Granules[:7], 8
		}},
		"too many granules": rawFile(func(x *packedtest.Raw) {
			s := &x.Sections[0]
			s.Granules = append(s.Granules, s.Granules[7])
		}),
		// The head.
		"no granules of a file with data": rawFile(func(x *packedtest.Raw) { x.Sections = nil }),
		"granules of a file without data": rawFile(func(x *packedtest.Raw) { x.Data, x.Segments = 0, nil }),
		"sections out of order": rawFile(func(x *packedtest.Raw) {
			x.Sections = append([]packedtest.RawSection{{Number: 1, Granules: x.Sections[0].Granules}}, x.Sections[0])
		}),
		"a section twice":                 rawFile(func(x *packedtest.Raw) { x.Sections = append(x.Sections, x.Sections[0]) }),
		"a section beyond the file":       rawFile(func(x *packedtest.Raw) { x.Sections[0].Number = 1 }),
		"a map that ends beyond the file": rawFile(func(x *packedtest.Raw) { x.Segments[0][1]++ }),
		"a map that overflows":            rawFile(func(x *packedtest.Raw) { x.Segments = [][2]uint64{{0, 16}, {1<<64 - 8, 16}} }),
		"a map of too little data":        rawFile(func(x *packedtest.Raw) { x.Segments[0][1]-- }),
		"4 billion packs":                 rawFile(func(x *packedtest.Raw) { x.Counts = [3]uint64{1<<32 - 1, 1, 1} }),
		"4 billion sections":              rawFile(func(x *packedtest.Raw) { x.Counts = [3]uint64{1, 1<<32 - 1, 1} }),
		"2^63 segments":                   rawFile(func(x *packedtest.Raw) { x.Counts = [3]uint64{1, 1, 1 << 63} }),
		"another version":                 rawFile(func(x *packedtest.Raw) { x.Version = 2 }),
		"a pack twice":                    rawFile(func(x *packedtest.Raw) { x.Packs = append(x.Packs, x.Packs[0]) }),
		"a head of another granule":       packedMeta(func(f *manifest.SnapshotFile) { f.Index.Granule *= 2 }),
		"a granule of 3 bytes":            packedMeta(func(f *manifest.SnapshotFile) { f.Index.Granule = 3 }),
		"a head of another size":          packedMeta(func(f *manifest.SnapshotFile) { f.SparseSize++ }),
		"a head of other data":            packedMeta(func(f *manifest.SnapshotFile) { f.Size--; f.SparseSize = f.Size + 1 }),
		"a head longer than its index":    packedMeta(func(f *manifest.SnapshotFile) { f.Index.Head.Size = f.Index.Size + 1 }),
		"a head of no bytes":              packedMeta(func(f *manifest.SnapshotFile) { f.Index.Head.Size = 0 }),
		"a head of -1 bytes":              packedMeta(func(f *manifest.SnapshotFile) { f.Index.Head.Size = -1 }),
		"a head with another digest":      packedMeta(func(f *manifest.SnapshotFile) { f.Index.Head.Digest = digests.Of(nil) }),
		"a head with no digest":           packedMeta(func(f *manifest.SnapshotFile) { f.Index.Head.Digest = "\x1b[2J" }),
		"an index that is no layer":       packedMeta(func(f *manifest.SnapshotFile) { f.Index.Digest = digests.Of(nil) }),
		"an index and a map":              packedMeta(func(f *manifest.SnapshotFile) { f.SparseMap = `[{"o":0,"l":131072}]` }),
		"a size of -1":                    packedMeta(func(f *manifest.SnapshotFile) { f.Size = -1 }),
		"a packed file of 2^62":           packedMeta(func(f *manifest.SnapshotFile) { f.SparseSize = 1 << 62 }),
		// The manifest.
		"a pack that is no layer": packedLayers(func(m *manifest.OCIManifest) { m.Layers = m.Layers[:1] }),
		"a pack of another size":  packedLayers(func(m *manifest.OCIManifest) { m.Layers[1].Size++ }),
		"a pack of two sizes": packedLayers(func(m *manifest.OCIManifest) {
			d := m.Layers[1]
			d.Size++
			m.Layers = append(m.Layers, d)
		}),
		"a pack of -1 bytes": packedLayers(func(m *manifest.OCIManifest) { m.Layers[1].Size = -1 }),
		"a pack that is a file": packedLayers(func(m *manifest.OCIManifest) {
			m.Layers[1].MediaType = manifest.MediaTypeGeneric
			m.Layers[1].Annotations = map[string]string{manifest.AnnotationTitle: "pack"}
		}),
		"an index with another title": packedLayers(func(m *manifest.OCIManifest) {
			m.Layers[0].Annotations[manifest.AnnotationTitle] = "other"
		}),
		"two indexes of one title": packedLayers(func(m *manifest.OCIManifest) { m.Layers = append(m.Layers, m.Layers[0]) }),
		"two other indexes of one title": packedLayers(func(m *manifest.OCIManifest) {
			d := m.Layers[0]
			d.Digest = digests.Of([]byte("other"))
			m.Layers = append(m.Layers, d)
		}),
		"an index without a title": packedLayers(func(m *manifest.OCIManifest) { m.Layers[0].Annotations = nil }),
		"packed of another schema": {artifact: func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) { cfg.SchemaVersion = "v1" }},
		// Frames.
		"a head that says 2^62":          frames(true, func(plain []byte) []byte { return says(1<<62, plain) }),
		"a head that says less":          frames(true, func(plain []byte) []byte { return says(uint64(len(plain)-1), plain) }),
		"a head of 2 GiB of zeros":       frames(true, func([]byte) []byte { return bomb(2 << 30) }),
		"a head of 32 MiB of zeros":      frames(true, func([]byte) []byte { return bomb(32 << 20) }),
		"a head that is no frame":        frames(true, func(plain []byte) []byte { return plain }),
		"a section that says 2^62":       frames(false, func(plain []byte) []byte { return says(1<<62, plain) }),
		"a section of more than it says": frames(false, func(plain []byte) []byte { return says(uint64(len(plain)), append(plain, 0)) }),
		"a section of a GiB":             frames(false, func([]byte) []byte { return bomb(1 << 30) }),
		"a section that is no frame":     frames(false, func(plain []byte) []byte { return plain }),
		"a granule that says 2^62":       granuleFrame(func(plain []byte) []byte { return says(1<<62, plain)[:hostileGranule] }),
		"a granule that says less":       granuleFrame(func(plain []byte) []byte { return says(uint64(len(plain)-1), plain) }),
		"a granule of a GiB of zeros":    granuleFrame(func([]byte) []byte { return bomb(256 << 20) }),
		"a granule with a window of 2 GiB": granuleFrame(func(plain []byte) []byte {
			f := says(uint64(len(plain)), plain)
			f = append(f[:4:4], append([]byte{0xc0, 21 << 3}, f[5:]...)...) // not one segment any more
			return f
		}),
		"a granule that is no frame": granuleFrame(func(plain []byte) []byte { return plain }),
		"a pack shorter than it says": {mark: 1, blobs: func(x *packedtest.Raw, blobs map[string][]byte) {
			d := fmt.Sprintf("sha256:%x", x.Packs[0].Sum)
			blobs[d] = blobs[d][:100]
		}},
		"a pack of other bytes": {mark: 2, blobs: func(x *packedtest.Raw, blobs map[string][]byte) {
			d := fmt.Sprintf("sha256:%x", x.Packs[0].Sum)
			blobs[d] = bytes.Repeat([]byte{0x28, 0xb5, 0x2f, 0xfd}, len(blobs[d])/4+1)[:len(blobs[d])]
		}},
	}
}

// make makes the artifact of a kind, with its blobs.
func (k packedKind) make() *artifacttest.Artifact {
	blobs := map[string][]byte{}
	data := hostileData()
	data[0] ^= k.mark
	x := packedtest.NewRaw("memory-ranges", data, hostileGranule, blobs)
	if k.raw != nil {
		k.raw(x)
	}
	a := packedtest.RawArtifact([]*packedtest.Raw{x}, blobs, k.artifact)
	if k.blobs != nil {
		k.blobs(x, blobs)
	}
	return a
}

// putPacked has the registry serve an artifact, whatever is wrong with it.
func (l *liar) putPacked(tag string, a *artifacttest.Artifact) {
	for digest, b := range a.Blobs {
		l.blobs[digest] = b
	}
	l.manifests[tag] = a.Manifest
}

// TestHostilePackedInBounds is TestHostileArtifactsInBounds of the packed
// format.
func TestHostilePackedInBounds(t *testing.T) {
	tier.Long(t, "builds the program, and measures it")
	t.Parallel()
	if underRace {
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^"+t.Name()+"$", ".")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	l := &liar{manifests: map[string][]byte{}, blobs: map[string][]byte{}, endless: map[string]bool{}}
	bin := buildPlain(t)
	l.packed()
	l.check(t, bin)

	// What the hostile kinds are made from is read.
	l.putPacked("plain", packedKind{}.make())
	srv := httptest.NewServer(l)
	defer srv.Close()
	got, err := exec.CommandContext(t.Context(), bin, "cat", "--cache-dir", filepath.Join(t.TempDir(), "cache"),
		strings.TrimPrefix(srv.URL, "http://")+"/vm:plain", "memory-ranges").Output()
	if err != nil || !bytes.Equal(got, hostileData()) {
		t.Errorf("a plain artifact: %d bytes, %v", len(got), err)
	}
}

// packed puts packed artifacts of all hostile kinds, and some that claim
// much.
func (l *liar) packed() {
	for name, k := range packedKinds() {
		l.putPacked(name, k.make())
	}
	many := func(tag string, n int, x *packedtest.Raw, blobs map[string][]byte) {
		var files []*packedtest.Raw
		for i := range n {
			f := *x
			f.Name = fmt.Sprintf("file%04d", i)
			files = append(files, &f)
		}
		l.putPacked(tag, packedtest.RawArtifact(files, blobs, nil))
	}
	// One byte at the end of 1 TiB has 2^26 slots.
	blobs := map[string][]byte{}
	x := packedtest.NewRaw("", []byte("x"), hostileGranule, blobs)
	x.Size, x.Segments = 1<<40, [][2]uint64{{1<<40 - 1, 1}}
	x.Sections[0].Number = 1<<26/4096 - 1
	many("100 files of a TiB with a byte", 100, x, blobs)

	// A million segments a file, in 2 MB.
	blobs = map[string][]byte{}
	y := packedtest.NewRaw("", make([]byte, 8*hostileGranule), hostileGranule, blobs)
	y.Segments = nil
	for range 64 << 10 {
		y.Segments = append(y.Segments, [2]uint64{1, 1})
	}
	y.Size, y.Data = 8*hostileGranule, 64<<10
	many("250 files of many segments", 250, y, blobs)
}
