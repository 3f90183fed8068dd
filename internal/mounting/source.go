package mounting

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/registry"
)

// explained is a repository as a source for the cache. It explains permanent
// errors in plain words.
type explained struct{ *registry.MirrorSource }

var (
	_ cache.Mirrored = explained{}
	_ cache.Origin   = explained{}
)

// OpenBlob opens bytes whose digest is verified before they are used.
func (s explained) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	body, whole, err := s.MirrorSource.OpenBlob(ctx, digest, size, off, n)
	return body, whole, plain(err)
}

// OpenTrusted opens all other bytes.
func (s explained) OpenTrusted(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	body, whole, err := s.MirrorSource.OpenTrusted(ctx, digest, size, off, n)
	return body, whole, plain(err)
}

// plain adds to a refusal of the registry what it means for a mount.
func plain(err error) error {
	var e *registry.Error
	switch {
	case !errors.As(err, &e) || e.Temporary():
		return err
	case errors.Is(err, registry.ErrNotFound):
		return fmt.Errorf("the registry no longer has this blob; what is in the cache stays readable: %w", err)
	case errors.Is(err, registry.ErrDenied):
		return fmt.Errorf("the registry no longer allows reading this blob; what is in the cache stays readable: %w", err)
	}
	return err
}

// offline is a source that returns only errors.
type offline struct{ cache.Origin }

func (offline) OpenBlob(context.Context, string, int64, int64, int64) (io.ReadCloser, bool, error) {
	return nil, false, final{ErrOffline}
}

// final is a permanent error.
type final struct{ error }

func (final) Temporary() bool { return false }
func (f final) Unwrap() error { return f.error }
