package mounting

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/registry"
)

// source is a repository as the cache wants it, and says in plain words
// what no waiting mends.
type source struct{ *registry.MirrorSource }

var (
	_ cache.Mirrored = source{}
	_ cache.Origin   = source{}
)

// OpenBlob opens bytes that are compared with a digest before their use.
func (s source) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	body, whole, err := s.MirrorSource.OpenBlob(ctx, digest, size, off, n)
	return body, whole, plain(err)
}

// OpenTrusted opens all others.
func (s source) OpenTrusted(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	body, whole, err := s.MirrorSource.OpenTrusted(ctx, digest, size, off, n)
	return body, whole, plain(err)
}

// plain adds what it means for a mount that its registry says no.
func plain(err error) error {
	var e *registry.Error
	switch {
	case !errors.As(err, &e) || e.Temporary():
		return err
	case errors.Is(err, registry.ErrNotFound):
		return fmt.Errorf("the registry no longer has this blob; what is in the cache stays readable: %w", err)
	case errors.Is(err, registry.ErrDenied):
		return fmt.Errorf("the registry does not allow to read this blob any more; what is in the cache stays readable: %w", err)
	}
	return err
}

// offline is a source of bytes that has none.
type offline struct{ cache.Origin }

func (offline) OpenBlob(context.Context, string, int64, int64, int64) (io.ReadCloser, bool, error) {
	return nil, false, final{ErrOffline}
}

// final is an error that trying again does not mend.
type final struct{ error }

func (final) Temporary() bool { return false }
func (f final) Unwrap() error { return f.error }
