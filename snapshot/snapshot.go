// Package snapshot reads and writes VM snapshots that are stored as
// artifacts in an OCI registry. Load parses and validates one into files
// that are lists of parts (package layout), whatever its format; WriteTar,
// Stream and Puller write it as the tar that cocoon imports; Pusher makes an
// artifact of the tar that cocoon exports.
//
// It uses neither HTTP nor FUSE. A registry is a Downloader and an Uploader,
// a local cocoon is a CocoonRunner, and a source of file contents is a
// Payloads: callers can implement each. Everything from a registry is
// treated as hostile until it has been checked.
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

	// EnvelopeName is the name of the file that describes the snapshot: the
	// first in a tar, and one of the files in a mount. No layer may have
	// this title.
	EnvelopeName = "snapshot.json"

	// MaxManifest bounds a manifest or index, in bytes: registries guarantee
	// 4 MiB.
	MaxManifest = 4 << 20

	// MaxConfig bounds a config blob, in bytes, as in the other tools.
	MaxConfig = 64 << 20

	// MaxEnvelope bounds the text of snapshot.json, in bytes.
	MaxEnvelope = 256 << 10

	// Cocoon's own keys for a sparse file's entry in a tar.
	paxSparseMap  = "COCOON.sparse.map"
	paxSparseSize = "COCOON.sparse.size"

	defaultTag  = "latest"
	defaultMode = 0o640 // of a file whose mode the artifact does not contain
)

// ErrKind is wrapped by the error about a reference to something else than a
// snapshot.
var ErrKind = errors.New("not a snapshot")

// Downloader reads from a registry. A tag may be a digest. GetManifest
// returns the bytes and their media type.
type Downloader interface {
	GetManifest(ctx context.Context, name, tag string) ([]byte, string, error)
	GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error)
}

// RangeDownloader is an optional interface of a Downloader. GetBlobRange
// returns exactly the bytes [off, off+n) of a stored blob.
type RangeDownloader interface {
	GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error)
}

// verifyingDownloader is what a Downloader may be besides. It returns the
// bytes [off, off+n) of a stored blob of size bytes. Their sha256 is sum, and
// they may be kept. Wrong bytes are an error with layout.ErrContent in its chain.
type verifyingDownloader interface {
	GetVerified(ctx context.Context, name, digest string, size, off, n int64, sum [sha256.Size]byte) ([]byte, error)
}

// Uploader writes to a registry.
type Uploader interface {
	BlobExists(ctx context.Context, name, digest string) (bool, error)
	PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error
	PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error
}

// StreamUploader is an optional interface of an Uploader. It uploads a blob
// whose digest is not known before its last byte. The registry must store
// exactly the bytes of body; the caller compares the returned digest.
type StreamUploader interface {
	UploadBlob(ctx context.Context, name string, body io.Reader) (digest string, size int64, err error)
}

// digestUploader is an optional interface of a StreamUploader, for callers
// that know the digest after body was read to its end. The digest covers
// what was read since body's start, or since the last Seek to it.
type digestUploader interface {
	UploadStream(ctx context.Context, name string, body io.Reader, digest func() string) (size int64, err error)
}

// hashedUploader is an optional interface of an Uploader. PutHashed is
// PutBlob without verifying the digest.
type hashedUploader interface {
	PutHashed(ctx context.Context, name, digest string, body io.Reader, size int64) error
}

// bytesUploader is an optional interface of an Uploader. PutMissing uploads
// bytes from memory, unless the repository has them or can mount them from
// the repository from, if that is not "", and reports whether it did not
// have to. It does not read them after it has returned.
type bytesUploader interface {
	PutMissing(ctx context.Context, name, from, digest string, data []byte) (there bool, err error)
}

// BlobMounter is an optional interface of an Uploader. MountBlob asks the
// registry to mount a blob from another of its repositories, and reports
// whether it did.
type BlobMounter interface {
	MountBlob(ctx context.Context, name, digest, from string) (bool, error)
}

// CocoonRunner is the local cocoon. The functions it returns wait for cocoon
// to end, after the stream has been closed, and return its error.
type CocoonRunner interface {
	Export(ctx context.Context, name string) (io.ReadCloser, func() error, error)
	Import(ctx context.Context, opts ImportOptions) (io.WriteCloser, func() error, error)
}

// Payloads opens a file's payload: its decoded parts, one after another. The
// reader must return io.EOF only after every byte of the payload has been
// verified.
type Payloads interface {
	OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error)
}

type (
	// ExecCocoon runs the cocoon binary.
	ExecCocoon = cocoon.Exec
	// ImportOptions names what an import makes.
	ImportOptions = cocoon.ImportOptions
)

// ResolveCocoonBinary returns the cocoon binary: envValue unless it is "",
// else cocoon in PATH.
func ResolveCocoonBinary(envValue string) (string, error) {
	return cocoon.ResolveBinary(envValue)
}

// kindError is the error about a manifest of another kind.
type kindError struct{ kind manifest.Kind }

func (e *kindError) Error() string {
	return fmt.Sprintf("manifest is %s, not a snapshot", e.kind)
}

func (e *kindError) Is(target error) bool { return target == ErrKind }

// wrong returns an error that wraps layout.ErrContent.
func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{layout.ErrContent}, args...)...)
}
