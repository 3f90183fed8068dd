package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// FetchSnapshotConfig downloads the config blob that desc names, checks
// its size and digest, and parses it. What the config says is not
// checked here.
func FetchSnapshotConfig(ctx context.Context, dl Downloader, name string, desc manifest.Descriptor) (*manifest.SnapshotConfig, error) {
	if desc.MediaType != manifest.MediaTypeSnapshotConfig {
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
	var cfg manifest.SnapshotConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return nil, fmt.Errorf("parse snapshot config: %w: %w", layout.ErrContent, err)
	}
	return &cfg, nil
}

// fetchBlob downloads a whole blob of at most MaxConfig bytes. Memory
// grows with what really comes, not with what the manifest says.
func fetchBlob(ctx context.Context, dl Downloader, name, dgst string, size int64) ([]byte, error) {
	body, err := dl.GetBlob(ctx, name, dgst)
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", dgst, err)
	}
	defer body.Close()
	var buf bytes.Buffer
	buf.Grow(int(min(size, 1<<20)) + bytes.MinRead)
	n, err := buf.ReadFrom(io.LimitReader(body, size+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", dgst, err)
	}
	if n != size {
		return nil, wrong("blob %s has %s, the manifest says %d", dgst, atLeast(n, size), size)
	}
	if got := digest.FromBytes(buf.Bytes()).String(); got != dgst {
		return nil, wrong("blob %s has digest %s", dgst, got)
	}
	return buf.Bytes(), nil
}

// atLeast words a count that was cut off after limit.
func atLeast(n, limit int64) string {
	if n > limit {
		return fmt.Sprintf("more than %d bytes", limit)
	}
	return fmt.Sprintf("%d bytes", n)
}
