// Package artifacttest makes artifacts of files in memory, for tests:
// snapshots of both formats, cloud images and indexes, with any chunk
// size, and a store that is a registry as far as package snapshot sees
// one. It imports no package that it helps to test above
// snapshot/manifest.
package artifacttest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// Envelope is a snapshot.json as cocoon writes it.
const Envelope = `{
  "config": {
    "cpu": 2,
    "memory": 8388608,
    "storage": 16777216,
    "queue_size": 256,
    "id": "HZSMAGQS2JB66QOQQWQNORH7AL",
    "name": "made",
    "description": "made for tests",
    "big": 12345678901234567890
  },
  "version": 1
}
`

// Created is when all artifacts here were made.
var Created = time.Date(2026, 11, 23, 9, 36, 15, 0, time.UTC)

// File is a file of a snapshot.
type File struct {
	Name string
	Data []byte      // as a reader sees it, holes as zeros
	Map  *sparse.Map // nil: no holes and no map
	Mode int64       // 0: 0o644
}

// Payload is the file's data segments.
func (f *File) Payload() []byte {
	if f.Map == nil {
		return f.Data
	}
	p := make([]byte, 0, f.Map.DataSize())
	for _, s := range f.Map.Segments() {
		p = append(p, f.Data[s.Offset:s.Offset+s.Length]...)
	}
	return p
}

func (f *File) mode() int64 {
	if f.Mode == 0 {
		return 0o644
	}
	return f.Mode
}

// Options says how a snapshot is stored. The zero value is format v1
// without what epochfs adds to it.
type Options struct {
	V2       bool   // format v2, also where nothing is compressed or split
	Zstd     bool   // compress every file; implies V2
	Chunk    int64  // split files larger than this many bytes; implies V2
	Piece    int64  // v1: piece digests of this many bytes
	Envelope string // keep this text in the config
	// Edit changes manifest and config before they are written. The
	// config's descriptor is made after it.
	Edit func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig)
	// EditConfig changes the config blob's text, for keys that are not known
	// here.
	EditConfig func(blob []byte) []byte
}

// Artifact is a manifest or index with everything it names.
type Artifact struct {
	Manifest  []byte
	MediaType string
	Blobs     map[string][]byte // by digest
	Children  []*Artifact       // of an index
}

// Digest is the manifest's.
func (a *Artifact) Digest() string { return digests.Of(a.Manifest) }

func (a *Artifact) add(data []byte) string {
	d := digests.Of(data)
	a.Blobs[d] = data
	return d
}

// Snapshot makes a snapshot of files.
func Snapshot(files []File, o Options) *Artifact {
	v2 := o.V2 || o.Zstd || o.Chunk > 0
	a := &Artifact{MediaType: manifest.MediaTypeOCIManifest, Blobs: map[string][]byte{}}
	m := &manifest.OCIManifest{
		SchemaVersion: 2, MediaType: a.MediaType, ArtifactType: manifest.ArtifactTypeSnapshot,
		Annotations: map[string]string{manifest.AnnotationCreated: Created.Format(time.RFC3339)},
	}
	cfg := &manifest.SnapshotConfig{
		SchemaVersion: "v1", SnapshotID: "HZSMAGQS2JB66QOQQWQNORH7AL", Description: "made for tests",
		CPU: 2, Memory: 8 << 20, Storage: 16 << 20,
		Files: map[string]manifest.SnapshotFile{}, CreatedAt: Created,
	}
	if v2 {
		m.ArtifactType, cfg.SchemaVersion = manifest.ArtifactTypeSnapshotV2, "v2"
	}
	if o.Envelope != "" {
		cfg.Envelope = &o.Envelope
	}
	for i := range files {
		f := &files[i]
		meta := manifest.SnapshotFile{Mode: f.mode()}
		if f.Map != nil {
			meta.SparseMap, meta.SparseSize = f.Map.Text(), f.Map.Size()
		}
		if v2 {
			meta.Size = int64(len(f.Payload()))
		}
		m.Layers = append(m.Layers, a.layers(f, &meta, o)...)
		cfg.Files[f.Name] = meta
		if o.Piece > 0 {
			if cfg.Pieces == nil {
				cfg.Pieces = map[string]manifest.SnapshotPieces{}
			}
			cfg.Pieces[f.Name] = pieces(f.Payload(), o.Piece)
		}
	}
	if o.Edit != nil {
		o.Edit(m, cfg)
	}
	blob := marshal(cfg, "")
	if o.EditConfig != nil {
		blob = o.EditConfig(blob)
	}
	m.Config = manifest.Descriptor{MediaType: manifest.MediaTypeSnapshotConfig, Digest: a.add(blob), Size: int64(len(blob))}
	a.Manifest = marshal(m, "  ")
	return a
}

// layers stores one file.
func (a *Artifact) layers(f *File, meta *manifest.SnapshotFile, o Options) []manifest.Descriptor {
	payload := f.Payload()
	d := manifest.Descriptor{MediaType: manifest.MediaTypeForCocoonFile(f.Name)}
	if o.Zstd {
		d.MediaType += manifest.SuffixZstd
	}
	chunks := [][]byte{payload}
	if n := int(o.Chunk); n > 0 && len(payload) > n {
		chunks = nil
		for at := 0; at < len(payload); at += n {
			chunks = append(chunks, payload[at:min(at+n, len(payload))])
		}
	}
	var layers []manifest.Descriptor
	for i, c := range chunks {
		if o.Zstd {
			c = Frame(c)
		}
		d.Digest, d.Size = a.add(c), int64(len(c))
		d.Annotations = map[string]string{manifest.AnnotationTitle: f.Name}
		if len(chunks) > 1 {
			d.Annotations["cocoonstack.chunk.index"] = strconv.Itoa(i)
			d.Annotations["cocoonstack.chunk.count"] = strconv.Itoa(len(chunks))
			meta.Chunks = append(meta.Chunks, d.Digest)
		}
		layers = append(layers, d)
	}
	return layers
}

func pieces(payload []byte, n int64) manifest.SnapshotPieces {
	p := manifest.SnapshotPieces{Size: n, SHA256: []byte{}}
	for at := int64(0); at < int64(len(payload)); at += n {
		sum := sha256.Sum256(payload[at:min(at+n, int64(len(payload)))])
		p.SHA256 = append(p.SHA256, sum[:]...)
	}
	return p
}

// CloudImage makes a cloud image of a disk's parts, titled
// NAME.part.aa and so on, stored last part first, with a list of
// checksums that is no part of it.
func CloudImage(name string, parts ...[]byte) *Artifact {
	a := &Artifact{MediaType: manifest.MediaTypeOCIManifest, Blobs: map[string][]byte{}}
	layer := func(mediaType, title string, data []byte) manifest.Descriptor {
		return manifest.Descriptor{
			MediaType: mediaType, Digest: a.add(data), Size: int64(len(data)),
			Annotations: map[string]string{manifest.AnnotationTitle: title},
		}
	}
	m := &manifest.OCIManifest{
		SchemaVersion: 2, MediaType: a.MediaType, ArtifactType: manifest.ArtifactTypeOSImage,
		Config:      manifest.Descriptor{MediaType: manifest.MediaTypeOCIEmpty, Digest: a.add([]byte("{}")), Size: 2},
		Layers:      []manifest.Descriptor{layer("text/plain", "SHA256SUMS", []byte("0  "+name+"\n"))},
		Annotations: map[string]string{manifest.AnnotationCreated: Created.Format(time.RFC3339)},
	}
	for i := len(parts) - 1; i >= 0; i-- {
		title := fmt.Sprintf("%s.part.%c%c", name, 'a'+i/26, 'a'+i%26)
		m.Layers = append(m.Layers, layer(manifest.MediaTypeDiskQcow2Part, title, parts[i]))
	}
	a.Manifest = marshal(m, "  ")
	return a
}

// Index makes an image index; platforms are os/architecture, by child.
func Index(platforms []string, children []*Artifact) *Artifact {
	a := &Artifact{MediaType: manifest.MediaTypeOCIIndex, Children: children}
	type index struct {
		SchemaVersion int                      `json:"schemaVersion"`
		MediaType     string                   `json:"mediaType"`
		Manifests     []manifest.IndexManifest `json:"manifests"`
	}
	x := index{SchemaVersion: 2, MediaType: a.MediaType}
	for i, c := range children {
		var p manifest.Platform
		for at, r := range platforms[i] {
			if r == '/' {
				p.OS, p.Architecture = platforms[i][:at], platforms[i][at+1:]
			}
		}
		x.Manifests = append(x.Manifests, manifest.IndexManifest{
			MediaType: c.MediaType, Digest: c.Digest(), Size: int64(len(c.Manifest)), Platform: &p,
		})
	}
	a.Manifest = marshal(x, "  ")
	return a
}

// Frame is one zstd frame with its content size in the header.
func Frame(data []byte) []byte {
	// Without a single segment the encoder leaves a size under 256 out.
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true),
		zstd.WithSingleSegment(len(data) < 256))
	if err != nil {
		panic(err)
	}
	defer e.Close()
	return e.EncodeAll(data, nil)
}

func marshal(v any, indent string) []byte {
	data, err := json.MarshalIndent(v, "", indent)
	if indent == "" {
		data, err = json.Marshal(v)
	}
	if err != nil {
		panic(err)
	}
	return data
}

// sortedKeys is a map's keys, so that whoever takes them does so in one
// order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
