package mounting

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// maxSmall bounds the blobs held in memory, in bytes: config blobs. The
// newer tools read as much.
const maxSmall = 64 << 20

// downloader implements snapshot.Downloader for remembering. It requests
// only what the cache does not have. The cache stores manifests and config
// blobs by digest; for a tag it stores only the digest, in case the registry
// is unreachable later.
type downloader struct {
	reg     *registry.Mirrors
	cache   metadataStore
	ref     registry.Reference
	offline bool
	timeout time.Duration // of one fetch; 0 for none
	log     *slog.Logger

	sizes map[string]int64 // of blobs, from manifests
	notes []string

	indexes indexes

	mu    sync.Mutex
	blobs []string      // digests of blobs that were read and are in the cache
	late  time.Duration // 0 before the first manifest
}

// read records that a small blob belongs to the artifact.
func (d *downloader) read(digest string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.blobs = append(d.blobs, digest)
}

func newDownloader(reg *registry.Mirrors, c metadataStore, ref registry.Reference, cfg Config) *downloader {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &downloader{reg: reg, cache: c, ref: ref, offline: cfg.Offline, timeout: cfg.ReadTimeout, log: log, sizes: map[string]int64{}}
}

// GetManifest returns a manifest by tag or digest.
func (d *downloader) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	raw, mediaType, err := d.getManifest(ctx, name, tag)
	if err != nil {
		return nil, "", err
	}
	if m, err := manifest.Parse(raw); err == nil {
		d.sizes[m.Config.Digest] = m.Config.Size
	}
	d.read(digests.Of(raw))
	return raw, mediaType, nil
}

func (d *downloader) getManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	if digests.HasPrefix(tag) {
		if raw, err := d.cache.Blob(tag); err == nil {
			return raw, declaredType(raw), nil
		}
		if d.offline {
			return nil, "", fmt.Errorf("manifest %s: %w", tag, ErrOffline)
		}
	} else if d.offline {
		return d.remembered(tag, ErrOffline)
	}
	raw, mediaType, err := d.ask(ctx, name, tag)
	if unreachable(err) && !digests.HasPrefix(tag) && ctx.Err() == nil {
		return d.remembered(tag, err)
	}
	if err != nil {
		return nil, "", err
	}
	digest := digests.Of(raw)
	d.keep(digest, raw)
	if !digests.HasPrefix(tag) {
		d.remember(d.tagged(tag), digest)
	}
	return raw, mediaType, nil
}

// tagPatience is how long a registry is asked for a tag whose last digest is
// known.
const tagPatience = 20 * time.Second

func (d *downloader) ask(ctx context.Context, name, tag string) ([]byte, string, error) {
	var most time.Duration
	if _, _, err := d.cache.Ref(d.tagged(tag)); err == nil {
		most = tagPatience
	}
	ctx, cancel := d.within(ctx, most)
	defer cancel()
	began := time.Now()
	doc, err := beside(ctx, d.lateness(), func(ctx context.Context) (document, error) {
		raw, kind, err := d.reg.GetManifest(ctx, name, tag)
		return document{raw, kind}, err
	})
	if err == nil {
		d.took(time.Since(began))
	}
	return doc.Raw, doc.MediaType, err
}

// within returns the context of one fetch, including retries: it ends after
// the read timeout or after most, if they are not 0.
func (d *downloader) within(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	if d.timeout > 0 && (most == 0 || d.timeout < most) {
		most = d.timeout
	}
	if most == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, most, ErrTimeout)
}

// unreachable reports whether the registry did not answer, or asked to come
// back later. A refusal, or a wrong identity, is no reason to use an older
// digest.
func unreachable(err error) bool {
	var e *registry.Error
	var cert *tls.CertificateVerificationError
	return errors.Is(err, registry.ErrUnreachable) && errors.As(err, &e) && e.Temporary() && !errors.As(err, &cert)
}

// remembered returns the manifest that a tag last stood for; err is why the
// registry cannot be asked now.
func (d *downloader) remembered(tag string, err error) ([]byte, string, error) {
	digest, seen, refErr := d.cache.Ref(d.tagged(tag))
	if refErr != nil {
		return nil, "", err
	}
	raw, blobErr := d.cache.Blob(digest)
	if blobErr != nil {
		return nil, "", err
	}
	if !d.offline {
		d.notes = append(d.notes, fmt.Sprintf("%s is not reachable; %s is taken for what it was %s ago, at %s",
			d.ref.Host, d.tagged(tag), age(time.Since(seen)), seen.Local().Format(time.DateTime)))
	}
	return raw, declaredType(raw), nil
}

// age formats how long ago something was, in the most suitable unit. A time
// in the future was recorded before the clock was set back.
func age(d time.Duration) string {
	d = max(d, 0)
	switch day := 24 * time.Hour; {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d seconds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%d hours", d/time.Hour)
	default:
		return fmt.Sprintf("%d days", d/day)
	}
}

// blob returns a small blob, verified.
func (d *downloader) blob(ctx context.Context, name, digest string) ([]byte, error) {
	d.read(digest)
	if data, err := d.cache.Blob(digest); err == nil {
		return data, nil
	}
	if d.offline {
		return nil, fmt.Errorf("blob %s: %w", digest, ErrOffline)
	}
	data, err := d.fetchBlob(ctx, name, digest)
	if err != nil {
		return nil, err
	}
	d.keep(digest, data)
	return data, nil
}

// blobTries bounds the tries for a blob that does not arrive or breaks off.
// For wrong bytes, each mirror has one try.
const blobTries = 4

// fetchBlob fetches a blob into memory and verifies it.
func (d *downloader) fetchBlob(ctx context.Context, name, digest string) ([]byte, error) {
	size := d.sizes[digest]
	ctx, cancel := d.within(ctx, 0)
	defer cancel()
	for {
		got, err := tries(ctx, d.lateness(), func(ctx context.Context) (brought, error) {
			body, err := openBlob(ctx, d.reg, name, digest, size)
			data, err := readBlob(body, err, size)
			return brought{data, body}, err
		})
		switch {
		case err != nil:
			return nil, err
		case digests.Of(got.data) == digest:
			return got.data, nil
		case !d.reg.Blame(digest, got.body):
			return nil, fmt.Errorf("blob %s has another digest: %w", digest, layout.ErrContent)
		}
	}
}

// brought holds the bytes read from a closed body.
type brought struct {
	data []byte
	body io.ReadCloser // identifies the host it came from
}

// tries reads something small, with retries if it breaks off or the registry
// asks to come back later, blobTries times at most.
func tries[T any](ctx context.Context, late time.Duration, read func(context.Context) (T, error)) (T, error) {
	pause := firstPause
	for left := blobTries; ; left-- {
		data, err := beside(ctx, late, read)
		var broken *registry.Error
		if err == nil || left == 1 || !errors.As(err, &broken) || !broken.Temporary() || broken.RetryAfter() > longPause {
			return data, err
		}
		select {
		case <-time.After(max(broken.RetryAfter(), pause/2+rand.N(pause/2))):
			pause *= 2
		case <-ctx.Done():
			return data, err
		}
	}
}

// firstPause is the wait before the second try; pauses of longPause and more
// are not waited for.
const (
	firstPause = 200 * time.Millisecond
	longPause  = 5 * time.Second
)

// readBlob reads a blob of known size into memory of that size.
func readBlob(body io.ReadCloser, err error, size int64) ([]byte, error) {
	if err != nil || size <= 0 || size > maxSmall {
		return readAll(body, err)
	}
	defer body.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(body, data); err != nil {
		return nil, err
	}
	return data, nil
}

// openBlob requests a blob of known size as a range, so that the answer also
// shows whether the registry honours ranges.
func openBlob(ctx context.Context, reg *registry.Mirrors, name, digest string, size int64) (io.ReadCloser, error) {
	if size > 0 && size <= maxSmall {
		return reg.GetWhole(ctx, name, digest, size)
	}
	return reg.GetBlob(ctx, name, digest)
}

// blobRange returns [off, off+n) of a blob: the header of a zstd frame. No
// digest covers the range, so it is stored under its own digest, found
// through the cache's references. It is used only as a hint until the blob
// itself is verified.
func (d *downloader) blobRange(ctx context.Context, name, digest string, off, n int64) ([]byte, error) {
	key := rangeKey(digest, off, n)
	if own, _, err := d.cache.Ref(key); err == nil {
		if data, err := d.cache.Blob(own); err == nil && int64(len(data)) == n {
			d.read(own)
			return data, nil
		}
	}
	if d.offline {
		return nil, fmt.Errorf("blob %s: %w", digest, ErrOffline)
	}
	ctx, cancel := d.within(ctx, 0)
	defer cancel()
	data, err := tries(ctx, d.lateness(), func(ctx context.Context) ([]byte, error) {
		return readAll(d.reg.GetBlobRange(ctx, name, digest, off, n))
	})
	if err != nil {
		return nil, err
	}
	own := digests.Of(data)
	d.read(own)
	d.keep(own, data)
	d.remember(key, own)
	return data, nil
}

// unsaid reports whether err is an error that the cache has not logged.
func unsaid(err error) bool { return err != nil && !errors.Is(err, cache.ErrNotKept) }

// keep and remember write to the cache. Their failure costs requests later,
// and nothing now.
func (d *downloader) keep(digest string, data []byte) {
	if err := d.cache.PutBlob(digest, data); unsaid(err) {
		d.log.Warn("blob is not kept", "digest", digest, "error", err)
	}
}

func (d *downloader) remember(key, digest string) {
	if err := d.cache.PutRef(key, digest); unsaid(err) {
		d.log.Warn("reference is not kept", "reference", key, "error", err)
	}
}

// loaded records what the artifact consists of; src is the source of its
// files.
func (d *downloader) loaded(reference string, a *snapshot.Artifact, src cache.Source) {
	if err := d.cache.PutArtifact(reference, a.Digest, a.Files, src, d.blobs); unsaid(err) {
		d.log.Warn("artifact is not kept in the list of what is cached", "reference", reference, "error", err)
	}
}

// tagged returns the cache's name of a tag of this repository.
func (d *downloader) tagged(tag string) string {
	ref := d.ref
	ref.Tag, ref.Digest = tag, ""
	return ref.String()
}

func readAll(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxSmall+1))
	if err == nil && len(data) > maxSmall {
		err = fmt.Errorf("a config of more than %d bytes: %w", maxSmall, layout.ErrContent)
	}
	return data, err
}

// declaredType returns the media type in a manifest; the registry's header
// is not stored.
func declaredType(raw []byte) string {
	m, err := manifest.Parse(raw)
	if err != nil {
		return ""
	}
	return m.MediaType
}
