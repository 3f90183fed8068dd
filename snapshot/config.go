package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// FetchSnapshotConfig downloads the config blob that desc names, verifies
// its size and digest, and parses it. It does not validate the contents.
func FetchSnapshotConfig(ctx context.Context, dl Downloader, name string, desc manifest.Descriptor) (*manifest.SnapshotConfig, error) {
	if desc.MediaType != manifest.MediaTypeSnapshotConfig && desc.MediaType != manifest.MediaTypePackedConfig {
		return nil, wrong("unexpected config mediaType %q", desc.MediaType)
	}
	if err := checkDescriptor(&desc); err != nil {
		return nil, fmt.Errorf("config blob: %w", err)
	}
	if desc.Size > MaxConfig {
		return nil, wrong("config blob too large: %d > %d", desc.Size, MaxConfig)
	}
	data, err := fetchBlob(ctx, dl, name, desc.Digest, desc.Size)
	if err != nil {
		return nil, err
	}
	cfg, err := manifest.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("parse snapshot config: %w: %w", layout.ErrContent, err)
	}
	return cfg, nil
}

// fetchBlob downloads a whole blob of at most MaxConfig bytes into memory of
// its size; a growing buffer would take twice as much.
func fetchBlob(ctx context.Context, dl Downloader, name, dgst string, size int64) ([]byte, error) {
	body, err := dl.GetBlob(ctx, name, dgst)
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", dgst, err)
	}
	defer body.Close()
	data := make([]byte, size)
	n, err := io.ReadFull(body, data)
	if err == nil {
		var more int
		if more, err = io.ReadFull(body, make([]byte, 1)); more > 0 {
			n++
		}
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read blob %s: %w", dgst, err)
	}
	if int64(n) != size {
		return nil, wrong("blob %s has %s, the manifest says %d", dgst, atLeast(int64(n), size), size)
	}
	if got := digests.Of(data); got != dgst {
		return nil, wrong("blob %s has digest %s", dgst, got)
	}
	return data, nil
}

// atLeast formats a count that stopped at limit.
func atLeast(n, limit int64) string {
	if n > limit {
		return fmt.Sprintf("more than %d bytes", limit)
	}
	return fmt.Sprintf("%d bytes", n)
}
