package mounting

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// known is everything that was read to open an artifact: manifests, configs
// and other small content. With it the artifact can be opened again without
// registry or cache, even if its tag has moved.
type known struct {
	mu        sync.Mutex
	complete  bool                // the artifact is open; later reads are not recorded
	Manifests map[string]document `json:"manifests"` // by tag or digest
	Blobs     map[string][]byte   `json:"blobs"`     // by digest or rangeKey
}

type document struct {
	Raw       []byte `json:"raw"`
	MediaType string `json:"media_type"`
}

func newKnown(text []byte) (*known, error) {
	k := &known{Manifests: map[string]document{}, Blobs: map[string][]byte{}}
	if text == nil {
		return k, nil
	}
	if err := json.Unmarshal(text, k); err != nil {
		return nil, fmt.Errorf("what is known of the artifact: %w", err)
	}
	return k, nil
}

// close ends the recording: all that is needed to open the artifact was
// read.
func (k *known) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.complete = true
}

func rangeKey(digest string, off, n int64) string {
	return fmt.Sprintf("%s bytes %d+%d", digest, off, n)
}

func (k *known) blob(key string) ([]byte, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	data, ok := k.Blobs[key]
	return data, ok
}

// remembering is a downloader that requests once and records the answers.
type remembering struct {
	*downloader
	known *known
}

func (r remembering) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	r.known.mu.Lock()
	doc, ok := r.known.Manifests[tag]
	r.known.mu.Unlock()
	if ok {
		return doc.Raw, doc.MediaType, nil
	}
	raw, mediaType, err := r.downloader.GetManifest(ctx, name, tag)
	if err == nil {
		r.known.mu.Lock()
		r.known.Manifests[tag] = document{raw, mediaType}
		r.known.mu.Unlock()
	}
	return raw, mediaType, err
}

func (r remembering) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	return r.note(digest, func() ([]byte, error) { return r.blob(ctx, name, digest) })
}

func (r remembering) GetBlobRange(ctx context.Context, name, digest string, off, n int64) (io.ReadCloser, error) {
	return r.note(rangeKey(digest, off, n), func() ([]byte, error) { return r.blobRange(ctx, name, digest, off, n) })
}

// GetVerified returns the head or a section of an index. Sections are not
// recorded: they are fetched while the mount is used, and are in the cache.
func (r remembering) GetVerified(ctx context.Context, name, digest string, size, off, n int64, sum [sha256.Size]byte) ([]byte, error) {
	own := digests.Format(sum)
	body, err := r.note(own, func() ([]byte, error) { return r.verified(ctx, stretch{name, digest, size, off, n, own}) })
	if err != nil {
		return nil, err
	}
	return io.ReadAll(body)
}

func (r remembering) note(key string, get func() ([]byte, error)) (io.ReadCloser, error) {
	data, ok := r.known.blob(key)
	if !ok {
		var err error
		if data, err = get(); err != nil {
			return nil, err
		}
		r.known.mu.Lock()
		if !r.known.complete {
			r.known.Blobs[key] = data
		}
		r.known.mu.Unlock()
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
