package mounting

import (
	"context"
	"io"

	"github.com/cocoonstack/epochfs/registry"
)

// source is a repository as the cache wants it.
type source struct {
	blobs *registry.Source
	reg   *registry.Registry
}

// OpenBlob opens [off, off+n) of a blob, or all of it where the registry
// ignores ranges.
func (s source) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	body, start, err := s.blobs.OpenBlob(ctx, digest, size, off, n)
	if err != nil {
		return nil, false, err
	}
	if start != off {
		return body, true, nil
	}
	// A range at the blob's start looks the same either way.
	known, served := s.reg.Ranges()
	return body, known && !served, nil
}

// offline is a source of bytes that has none.
type offline struct{}

func (offline) OpenBlob(context.Context, string, int64, int64, int64) (io.ReadCloser, bool, error) {
	return nil, false, final{ErrOffline}
}

// final is an error that trying again does not mend.
type final struct{ error }

func (final) Temporary() bool { return false }
func (f final) Unwrap() error { return f.error }
