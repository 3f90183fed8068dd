// Package snapshot reads and writes VM snapshots that lie as artifacts in
// an OCI registry. Load parses and validates one into files that are
// lists of parts (package layout), whichever format it has; WriteTar,
// Stream and Puller write it as the tar that cocoon imports; Pusher makes
// an artifact of the tar that cocoon exports.
//
// It knows no HTTP and no FUSE. A registry is a Downloader and an
// Uploader, a local cocoon is a CocoonRunner, and where a file's bytes
// come from is a Payloads: anybody can write one. Everything that comes
// from a registry is taken for hostile until it has been checked.
package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	// CocoonBinaryEnv is the environment variable that names the cocoon
	// binary.
	CocoonBinaryEnv = cocoon.BinaryEnv

	// EnvelopeName is the file that describes the snapshot, first in a tar
	// and a file of its own in a mount. No layer may have this title.
	EnvelopeName = "snapshot.json"

	// MaxManifest bounds a manifest or index, in bytes: registries promise
	// to take 4 MiB.
	MaxManifest = 4 << 20

	// MaxConfig bounds a config blob, in bytes, as in the other tools.
	MaxConfig = 64 << 20

	// MaxEnvelope bounds the text of snapshot.json, in bytes.
	MaxEnvelope = 256 << 10

	// Cocoon's own keys for a sparse file's entry in a tar.
	paxSparseMap  = "COCOON.sparse.map"
	paxSparseSize = "COCOON.sparse.size"

	defaultTag  = "latest"
	defaultMode = 0o640 // of a file whose mode the artifact does not tell
)

// ErrKind is in the chain of an error that says: this reference is no
// snapshot but something else that a registry holds.
var ErrKind = errors.New("not a snapshot")

// Downloader reads from a registry. A tag may be a digest. GetManifest
// returns the bytes and their media type.
type Downloader interface {
	GetManifest(ctx context.Context, name, tag string) ([]byte, string, error)
	GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error)
}

// RangeDownloader is what a Downloader may be besides. It gives exactly
// the bytes [off, off+n) of a stored blob.
type RangeDownloader interface {
	GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error)
}

// verifyingDownloader is what a Downloader may be besides. It returns the
// bytes [off, off+n) of a stored blob, whose sha256 is sum, and may keep
// them. Wrong bytes are an error with layout.ErrContent in its chain.
type verifyingDownloader interface {
	GetVerified(ctx context.Context, name, digest string, off, n int64, sum [sha256.Size]byte) ([]byte, error)
}

// Uploader writes to a registry.
type Uploader interface {
	BlobExists(ctx context.Context, name, digest string) (bool, error)
	PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error
	PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error
}

// StreamUploader is what an Uploader may be besides: it takes a blob
// whose digest is not known before its last byte. The bytes in the
// registry must be those of body; the digest it returns is compared.
type StreamUploader interface {
	UploadBlob(ctx context.Context, name string, body io.Reader) (digest string, size int64, err error)
}

// digestUploader is a StreamUploader whose caller knows the digest once
// body was read to its end; it is of what was read since body's start, or
// since the last Seek to it.
type digestUploader interface {
	UploadStream(ctx context.Context, name string, body io.Reader, digest func() string) (size int64, err error)
}

// hashedUploader is what an Uploader may be besides: its PutHashed is
// PutBlob, but takes the digest for granted.
type hashedUploader interface {
	PutHashed(ctx context.Context, name, digest string, body io.Reader, size int64) error
}

// bytesUploader is what an Uploader may be besides: it sends bytes that
// are in memory, unless the repository has them or can take them over from
// the repository from, which is "" where there is none; then there is
// true. It does not read them any more when it has returned.
type bytesUploader interface {
	PutMissing(ctx context.Context, name, from, digest string, data []byte) (there bool, err error)
}

// BlobMounter is what an Uploader may be besides: it asks the registry to
// take a blob over from another of its repositories, and tells whether it
// did.
type BlobMounter interface {
	MountBlob(ctx context.Context, name, digest, from string) (bool, error)
}

// CocoonRunner is the local cocoon. The functions it returns wait for
// cocoon to end, after the stream has been closed, and say how it went.
type CocoonRunner interface {
	Export(ctx context.Context, name string) (io.ReadCloser, func() error, error)
	Import(ctx context.Context, opts ImportOptions) (io.WriteCloser, func() error, error)
}

// Payloads opens a file's payload: its parts decoded, one after another.
// The reader must say io.EOF only when every byte of the payload has
// been verified.
type Payloads interface {
	OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error)
}

type (
	// ExecCocoon runs the cocoon binary.
	ExecCocoon = cocoon.Exec
	// ImportOptions names what an import makes.
	ImportOptions = cocoon.ImportOptions
)

// ResolveCocoonBinary finds the cocoon binary: envValue where it is set,
// else cocoon in PATH.
func ResolveCocoonBinary(envValue string) (string, error) {
	return cocoon.ResolveBinary(envValue)
}

// kindError says what the manifest is instead.
type kindError struct{ kind manifest.Kind }

func (e *kindError) Error() string {
	return fmt.Sprintf("manifest is %s, not a snapshot", e.kind)
}

func (e *kindError) Is(target error) bool { return target == ErrKind }

// wrong is an error with layout.ErrContent in its chain.
func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{layout.ErrContent}, args...)...)
}
