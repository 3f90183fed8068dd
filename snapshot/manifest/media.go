package manifest

import "strings"

// Media types of manifests, and of config blobs that identify container
// images.
const (
	MediaTypeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"

	MediaTypeOCIImageConfig = "application/vnd.oci.image.config.v1+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	MediaTypeOCIEmpty       = "application/vnd.oci.empty.v1+json"
)

// Artifact types, and the media type of a snapshot's config blob, which is
// the same in both formats.
const (
	ArtifactTypeOSImage      = "application/vnd.cocoonstack.os-image.v1+json"
	ArtifactTypeWindowsImage = "application/vnd.cocoonstack.windows-image.v1+json" // the former name
	ArtifactTypeSnapshot     = "application/vnd.cocoonstack.snapshot.v1+json"
	ArtifactTypeSnapshotV2   = "application/vnd.cocoonstack.snapshot.v2+json" // compressed or split files

	MediaTypeSnapshotConfig = "application/vnd.cocoonstack.snapshot.config.v1+json"
)

// Types of the packed format, which is epochfs's own.
const (
	ArtifactTypePacked = "application/vnd.epochfs.snapshot.v1+json"

	MediaTypePackedConfig = "application/vnd.epochfs.snapshot.config.v1+json"
	MediaTypeIndex        = "application/vnd.epochfs.index.v1+zstd"
	MediaTypePack         = "application/vnd.epochfs.pack.v1+zstd"
)

// Types of a working set, which is epochfs's own artifact. Its config has
// the artifact's type, because some registries list referrers by that.
const (
	ArtifactTypeWorkingSet = "application/vnd.epochfs.workingset.v1+json"
	MediaTypeWorkingSet    = "application/vnd.epochfs.workingset.v1+zstd"
)

// Media types of layers. A layer of format v2 may append SuffixZstd to any
// of them.
const (
	MediaTypeDiskQcow2     = "application/vnd.cocoonstack.disk.qcow2"
	MediaTypeDiskQcow2Part = "application/vnd.cocoonstack.disk.qcow2.part"
	MediaTypeDiskRaw       = "application/vnd.cocoonstack.disk.raw"
	MediaTypeDiskRawPart   = "application/vnd.cocoonstack.disk.raw.part"

	MediaTypeWindowsDiskQcow2     = "application/vnd.cocoonstack.windows.disk.qcow2"
	MediaTypeWindowsDiskQcow2Part = "application/vnd.cocoonstack.windows.disk.qcow2.part"
	MediaTypeWindowsDiskRaw       = "application/vnd.cocoonstack.windows.disk.raw"
	MediaTypeWindowsDiskRawPart   = "application/vnd.cocoonstack.windows.disk.raw.part"

	MediaTypeVMConfig = "application/vnd.cocoonstack.vm.config+json"
	MediaTypeVMState  = "application/vnd.cocoonstack.vm.state+json"
	MediaTypeVMMemory = "application/vnd.cocoonstack.vm.memory"
	MediaTypeVMCidata = "application/vnd.cocoonstack.vm.cidata"

	MediaTypeGeneric = "application/octet-stream"
	MediaTypeTar     = "application/x-tar"

	SuffixZstd = "+zstd"
)

// Keys of annotations.
const (
	AnnotationTitle       = "org.opencontainers.image.title"
	AnnotationCreated     = "org.opencontainers.image.created"
	AnnotationSource      = "org.opencontainers.image.source"
	AnnotationRevision    = "org.opencontainers.image.revision"
	AnnotationDescription = "org.opencontainers.image.description"

	AnnotationSnapshotID        = "cocoonstack.snapshot.id"
	AnnotationSnapshotBaseImage = "cocoonstack.snapshot.baseimage"
	AnnotationFromNode          = "cocoonstack.snapshot.from-node" // the node that pushed it

	// ReservedPrefix begins the keys that only cocoonstack's tools write.
	ReservedPrefix = "cocoonstack."
)

// MediaTypeForCocoonFile returns the media type of the layer that holds the
// snapshot's file of the given name.
func MediaTypeForCocoonFile(name string) string {
	switch name {
	case "config.json":
		return MediaTypeVMConfig
	case "state.json":
		return MediaTypeVMState
	case "memory-ranges":
		return MediaTypeVMMemory
	case "cidata.img":
		return MediaTypeVMCidata
	}
	switch {
	case strings.HasSuffix(name, ".qcow2"):
		return MediaTypeDiskQcow2
	case strings.HasSuffix(name, ".raw"):
		return MediaTypeDiskRaw
	}
	return MediaTypeGeneric
}

// IsMemory reports whether a snapshot's file holds a guest's memory. The name
// and the layer's media type each suffice: Firecracker's mem travels as
// MediaTypeGeneric, and a writer may name the file differently.
func IsMemory(name, mediaType string) bool {
	return name == "mem" || strings.HasPrefix(name, "memory-range") ||
		strings.TrimSuffix(mediaType, SuffixZstd) == MediaTypeVMMemory
}

// IsDiskMediaType reports whether a layer of this type is a disk or a part
// of a disk.
func IsDiskMediaType(mt string) bool {
	switch mt {
	case MediaTypeDiskQcow2, MediaTypeDiskQcow2Part,
		MediaTypeDiskRaw, MediaTypeDiskRawPart,
		MediaTypeWindowsDiskQcow2, MediaTypeWindowsDiskQcow2Part,
		MediaTypeWindowsDiskRaw, MediaTypeWindowsDiskRawPart:
		return true
	}
	return false
}

// IsLayerMediaType reports whether a snapshot's layer may have this type,
// apart from SuffixZstd.
func IsLayerMediaType(mt string) bool {
	switch mt {
	case MediaTypeVMConfig, MediaTypeVMState, MediaTypeVMMemory, MediaTypeVMCidata, MediaTypeGeneric:
		return true
	}
	return IsDiskMediaType(mt)
}
