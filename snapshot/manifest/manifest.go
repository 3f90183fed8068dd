// Package manifest defines the JSON forms of cocoonstack's artifacts: OCI
// manifests and indexes, the config blob of a snapshot, and the media types
// that distinguish the kinds of artifact. It checks only the JSON syntax: a
// manifest's contents may be trusted only after package snapshot has
// validated them.
package manifest

import (
	"encoding/json"
	"fmt"
	"time"
)

// Kind is the kind of artifact that a manifest describes.
type Kind int

const (
	KindUnknown Kind = iota
	KindContainerImage
	KindCloudImage
	KindSnapshot
	KindImageIndex
)

// String returns the kind's name for errors and users.
func (k Kind) String() string {
	switch k {
	case KindContainerImage:
		return "container-image"
	case KindCloudImage:
		return "cloud-image"
	case KindSnapshot:
		return "snapshot"
	case KindImageIndex:
		return "image-index"
	}
	return "unknown"
}

// Descriptor references a blob.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"` // stored bytes
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

// Title returns the file name in the descriptor's annotations, or "". The
// writer chose the name, and it may be anything.
func (d Descriptor) Title() string { return d.Annotations[AnnotationTitle] }

// Platform is the target platform of a child of an index.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	OSVersion    string `json:"os.version,omitempty"`
	Variant      string `json:"variant,omitempty"`
}

// IndexManifest is a child of an index.
type IndexManifest struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"`
	Platform  *Platform `json:"platform,omitempty"`
}

// OCIManifest is an image manifest or, if Manifests is set, an index.
type OCIManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType,omitempty"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Manifests     []IndexManifest   `json:"manifests,omitempty"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// Parse decodes a manifest or an index.
func Parse(raw []byte) (*OCIManifest, error) {
	var m OCIManifest
	if err := checkValues(raw); err != nil {
		return nil, fmt.Errorf("parse oci manifest: %w", err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("parse oci manifest: %w", err)
	}
	return &m, nil
}

// Classify returns the kind of artifact that a manifest describes. It
// returns KindUnknown and an error only if the JSON is invalid.
func Classify(raw []byte) (Kind, error) {
	m, err := Parse(raw)
	if err != nil {
		return KindUnknown, fmt.Errorf("classify manifest: %w", err)
	}
	return ClassifyParsed(m), nil
}

// ClassifyParsed returns the kind by the artifact type, then by the config's
// media type, then by the manifest's own.
func ClassifyParsed(m *OCIManifest) Kind {
	switch m.ArtifactType {
	case ArtifactTypeSnapshot, ArtifactTypeSnapshotV2, ArtifactTypePacked:
		return KindSnapshot
	case ArtifactTypeOSImage, ArtifactTypeWindowsImage:
		return KindCloudImage
	}
	switch m.Config.MediaType {
	case MediaTypeOCIImageConfig, MediaTypeDockerConfig:
		return KindContainerImage
	}
	switch m.MediaType {
	case MediaTypeOCIIndex, MediaTypeDockerIndex:
		return KindImageIndex
	case "": // optional in OCI
		if len(m.Manifests) > 0 && m.Config.MediaType == "" {
			return KindImageIndex
		}
	}
	return KindUnknown
}

// SnapshotConfig is the config blob of a snapshot. The keys that other tools
// know come first, in the order in which those tools write them.
type SnapshotConfig struct {
	SchemaVersion string                  `json:"schemaVersion"`
	SnapshotID    string                  `json:"snapshotId"`
	Description   string                  `json:"description,omitempty"`
	Image         string                  `json:"image,omitempty"`
	ImageDigest   string                  `json:"imageDigest,omitempty"`
	ImageType     string                  `json:"imageType,omitempty"`
	ImageBlobIDs  map[string]struct{}     `json:"imageBlobIds,omitempty"`
	Hypervisor    string                  `json:"hypervisor,omitempty"`
	CPU           int                     `json:"cpu,omitempty"`
	Memory        int64                   `json:"memory,omitempty"`  // bytes
	Storage       int64                   `json:"storage,omitempty"` // bytes
	NICs          int                     `json:"nics,omitempty"`
	Network       string                  `json:"network,omitempty"`
	Windows       bool                    `json:"windows,omitempty"`
	Files         map[string]SnapshotFile `json:"files,omitempty"` // by title
	CreatedAt     time.Time               `json:"createdAt"`

	// Engine is the config object of snapshot.json as JSON; nil if the
	// writer did not keep it.
	Engine json.RawMessage `json:"engine,omitempty"`

	// Envelope is the text of snapshot.json, byte for byte; nil if the
	// writer did not keep it.
	Envelope *string `json:"dev.epochfs.envelope,omitempty"`
	// Pieces holds digests of ranges of v1 blobs, by title.
	Pieces map[string]SnapshotPieces `json:"dev.epochfs.pieces,omitempty"`
	// Base is the digest of the packed artifact whose packs this
	// artifact shares, or "".
	Base string `json:"dev.epochfs.base,omitempty"`

	// Others holds the values of keys that are not known here, if they are
	// objects and the blob has neither Envelope nor Engine.
	Others map[string]json.RawMessage `json:"-"`
}

// SnapshotFile describes a file in the config blob.
type SnapshotFile struct {
	Mode       int64    `json:"mode"`                 // permission bits
	SparseMap  string   `json:"sparseMap,omitempty"`  // JSON list of data segments; "" for a file without holes
	SparseSize int64    `json:"sparseSize,omitempty"` // apparent bytes, with SparseMap
	Size       int64    `json:"size,omitempty"`       // v2: payload bytes before compression
	Chunks     []string `json:"chunks,omitempty"`     // v2: digests of a split file's chunks, in order

	// Records holds the further PAX records of the file's header in an
	// export: cocoon's records that epochfs does not interpret.
	Records map[string]string `json:"dev.epochfs.records,omitempty"`

	// Index references the index of granules of a packed file; nil for
	// any other file.
	Index *SnapshotIndex `json:"dev.epochfs.index,omitempty"`
}

// SnapshotIndex references the index of a packed file. Sizes are in bytes.
type SnapshotIndex struct {
	Digest  string    `json:"digest"` // of the layer
	Size    int64     `json:"size"`
	Head    IndexHead `json:"head"`
	Granule int64     `json:"granule"`
}

// IndexHead references the last bytes of an index.
type IndexHead struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// SnapshotPieces holds the digests of the pieces of a blob, each Size bytes.
type SnapshotPieces struct {
	Size   int64  `json:"size"`
	SHA256 []byte `json:"sha256"` // sums one after another; base64 in JSON
}
