package packedtest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// Raw is a packed file to the byte, as docs/format.md has it and without
// the product's writer, so that it can be what that never writes.
type Raw struct {
	Name       string
	Version    uint32
	Granule    uint32
	Size, Data uint64
	Packs      []RawPack
	Sections   []RawSection
	Segments   [][2]uint64 // gap and length

	// Counts replace those of packs, sections and segments if they are set.
	Counts [3]uint64
	// Frame makes the frame of a head or section; nil for a plain one.
	Frame func(head bool, plain []byte) []byte
	// Decoded replaces the decoded length of sections if it is set.
	Decoded uint32
}

// RawPack is a pack as the head names it.
type RawPack struct {
	Sum  [32]byte
	Size uint64
}

// RawSection is a section, and its description in the head.
type RawSection struct {
	Number   uint32
	Granules []RawGranule
	Count    uint32 // 0: as many as there are
}

// RawGranule is a granule's entry.
type RawGranule struct {
	Pack, Offset, Stored int64
	Sum                  [32]byte
}

// NewRaw makes a file without holes of one pack, whose content is put in
// blobs. It has at most one section.
func NewRaw(name string, data []byte, granule int, blobs map[string][]byte) *Raw {
	x := &Raw{Name: name, Version: 1, Granule: uint32(granule), Size: uint64(len(data)), Data: uint64(len(data))}
	if len(data) == 0 {
		return x
	}
	x.Segments = [][2]uint64{{0, uint64(len(data))}}
	var pack []byte
	var all []RawGranule
	for at := 0; at < len(data); at += granule {
		plain := data[at:min(at+granule, len(data))]
		frame := artifacttest.Frame(plain)
		all = append(all, RawGranule{0, int64(len(pack)), int64(len(frame)), sha256.Sum256(plain)})
		pack = append(pack, frame...)
	}
	blobs[digests.Of(pack)] = pack
	x.Packs = []RawPack{{sha256.Sum256(pack), uint64(len(pack))}}
	x.Sections = []RawSection{{0, all, 0}}
	return x
}

func (s *RawSection) encode() (b []byte) {
	last := RawGranule{}
	for _, g := range s.Granules {
		b = binary.AppendVarint(b, g.Pack-last.Pack)
		last = g
	}
	for i, g := range s.Granules {
		base := int64(0)
		if i > 0 && s.Granules[i-1].Pack == g.Pack {
			base = s.Granules[i-1].Offset + s.Granules[i-1].Stored
		}
		b = binary.AppendVarint(b, g.Offset-base)
	}
	for _, g := range s.Granules {
		b = binary.AppendUvarint(b, uint64(g.Stored))
	}
	for _, g := range s.Granules {
		b = append(b, g.Sum[:]...)
	}
	return b
}

// Encode returns the index and its head, the last frame.
func (x *Raw) Encode() (index, head []byte) {
	frame := x.Frame
	if frame == nil {
		frame = func(_ bool, plain []byte) []byte { return artifacttest.Frame(plain) }
	}
	counts := [3]uint64{uint64(len(x.Packs)), uint64(len(x.Sections)), uint64(len(x.Segments))}
	if x.Counts != [3]uint64{} {
		counts = x.Counts
	}
	h := append([]byte("epochfsH"), make([]byte, 40)...)
	le := binary.LittleEndian
	le.PutUint32(h[8:], x.Version)
	le.PutUint32(h[12:], x.Granule)
	le.PutUint64(h[16:], x.Size)
	le.PutUint64(h[24:], x.Data)
	le.PutUint32(h[32:], uint32(counts[0]))
	le.PutUint32(h[36:], uint32(counts[1]))
	le.PutUint64(h[40:], counts[2])
	for _, p := range x.Packs {
		h = le.AppendUint64(append(h, p.Sum[:]...), p.Size)
	}
	for _, s := range x.Sections {
		plain := s.encode()
		stored := frame(false, plain)
		index = append(index, stored...)
		sum := sha256.Sum256(stored)
		n, length := uint32(len(s.Granules)), uint32(len(plain))
		if s.Count != 0 {
			n = s.Count
		}
		if x.Decoded != 0 {
			length = x.Decoded
		}
		for _, v := range []uint32{s.Number, n, uint32(len(stored)), length} {
			h = le.AppendUint32(h, v)
		}
		h = append(h, sum[:]...)
	}
	for _, s := range x.Segments {
		h = binary.AppendUvarint(binary.AppendUvarint(h, s[0]), s[1])
	}
	head = frame(true, h)
	return append(index, head...), head
}

// RawArtifact makes an artifact of files that have their packs in blobs.
// edit changes manifest and config before they are written; it may be nil.
func RawArtifact(files []*Raw, blobs map[string][]byte, edit func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig)) *artifacttest.Artifact {
	a := &artifacttest.Artifact{MediaType: manifest.MediaTypeOCIManifest, Blobs: blobs}
	m := &manifest.OCIManifest{SchemaVersion: 2, MediaType: a.MediaType, ArtifactType: manifest.ArtifactTypePacked}
	cfg := &manifest.SnapshotConfig{SchemaVersion: "packed", Files: map[string]manifest.SnapshotFile{}, CreatedAt: artifacttest.Created}
	listed := map[RawPack]bool{}
	for _, x := range files {
		index, head := x.Encode()
		blobs[digests.Of(index)] = index
		cfg.Files[x.Name] = manifest.SnapshotFile{Mode: 0o644, Size: int64(x.Data), SparseSize: int64(x.Size), Index: &manifest.SnapshotIndex{
			Digest: digests.Of(index), Size: int64(len(index)), Granule: int64(x.Granule),
			Head: manifest.IndexHead{Digest: digests.Of(head), Size: int64(len(head))},
		}}
		m.Layers = append(m.Layers, manifest.Descriptor{
			MediaType: manifest.MediaTypeIndex, Digest: digests.Of(index), Size: int64(len(index)),
			Annotations: map[string]string{manifest.AnnotationTitle: x.Name},
		})
		for _, p := range x.Packs {
			if !listed[p] {
				listed[p] = true
				m.Layers = append(m.Layers, manifest.Descriptor{MediaType: manifest.MediaTypePack, Digest: fmt.Sprintf("sha256:%x", p.Sum), Size: int64(p.Size)})
			}
		}
	}
	if edit != nil {
		edit(m, cfg)
	}
	config := mustJSON(cfg)
	blobs[digests.Of(config)] = config
	m.Config = manifest.Descriptor{MediaType: manifest.MediaTypeSnapshotConfig, Digest: digests.Of(config), Size: int64(len(config))}
	a.Manifest = mustJSON(m)
	return a
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
