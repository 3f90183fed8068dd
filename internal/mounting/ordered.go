package mounting

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/internal/direct"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// metadataStore stores a downloader's manifests, configs and references.
type metadataStore interface {
	Blob(digest string) ([]byte, error)
	PutBlob(digest string, data []byte) error
	Ref(reference string) (digest string, seen time.Time, err error)
	PutRef(reference, digest string) error
	PutArtifact(reference, digest string, files []*layout.File, src cache.Source, blobs []string) error
}

// noStore is a metadataStore that stores nothing.
type noStore struct{}

func (noStore) Blob(string) ([]byte, error)           { return nil, fs.ErrNotExist }
func (noStore) PutBlob(string, []byte) error          { return nil }
func (noStore) Ref(string) (string, time.Time, error) { return "", time.Time{}, fs.ErrNotExist }
func (noStore) PutRef(string, string) error           { return nil }
func (noStore) PutArtifact(string, string, []*layout.File, cache.Source, []string) error {
	return nil
}

// overhead is the memory that a process takes in addition to payload
// buffers, in bytes: the program, stacks, connections' buffers and decoders.
const overhead = 112 << 20

// LeastMemory is the smallest possible Config.Memory, in bytes.
const LeastMemory = overhead + direct.LeastMemory

// buffers returns the part of Config.Memory for fetched bytes; 0 for the
// default.
func (c *Config) buffers() int64 {
	if c.Memory == 0 {
		return 0
	}
	return max(c.Memory-overhead, direct.LeastMemory)
}

// onlyRead is a metadataStore that reads from a cache and stores nothing.
type onlyRead struct {
	noStore
	*cache.Reader
}

func (r onlyRead) Blob(digest string) ([]byte, error) { return r.Reader.Blob(digest) }
func (r onlyRead) Ref(reference string) (digest string, seen time.Time, err error) {
	return r.Reader.Ref(reference)
}

// ordered reads an artifact in order, from the registry and the cache.
// Fetched bytes are stored if Opened has a cache.
type ordered struct {
	payloads *direct.Payloads
	local    []*cache.Local // by file, if the cache is only read; else empty
}

// openInOrder opens an artifact whose bytes are not stored.
func (o *Opened) openInOrder(ctx context.Context, ref registry.Reference) error {
	var keep metadataStore = noStore{}
	if o.cfg.OnlyRead {
		reader, err := cache.OpenReader(o.cfg.CacheDir, o.cfg.Log)
		switch {
		case err == nil:
			o.reader = reader
			keep = onlyRead{Reader: reader}
		case !errors.Is(err, fs.ErrNotExist):
			return &cacheError{err}
		}
	}
	if err := o.load(ctx, ref, o.cfg, keep); err != nil || o.reader == nil {
		return err
	}
	for _, f := range o.Artifact.Files {
		l, err := o.reader.File(f, o.source)
		if err != nil {
			return err
		}
		o.ordered.local = append(o.ordered.local, l)
	}
	return nil
}

// localFile returns the cache's part of a file if the cache is only read,
// else nil.
func (d *ordered) localFile(i int) *cache.Local {
	if i < 0 || i >= len(d.local) {
		return nil
	}
	return d.local[i]
}

// OpenPayload streams a file's data segments; it returns io.EOF only after
// all of them were verified. It is fast if the caller opens the files in
// their order, one after another, and skips only those that are complete.
func (o *Opened) OpenPayload(ctx context.Context, f *layout.File) (io.ReadCloser, error) {
	o.reading.Lock()
	defer o.reading.Unlock()
	if o.ordered.payloads == nil {
		if err := o.readFrom(0); err != nil {
			return nil, err
		}
	}
	r, err := o.ordered.payloads.OpenPayload(ctx, f)
	if errors.Is(err, direct.ErrOrder) {
		if err = o.readFrom(max(0, slices.Index(o.Artifact.Files, f))); err == nil {
			r, err = o.ordered.payloads.OpenPayload(ctx, f)
		}
	}
	return r, err
}

// readFrom starts reading file i and those after it.
func (o *Opened) readFrom(i int) error {
	stores, err := o.stores()
	if err != nil {
		return err
	}
	if o.ordered.payloads != nil {
		_ = o.ordered.payloads.Close() // it only ends requests
	}
	o.ordered.payloads = direct.New(o.source, o.Artifact.Files[i:], direct.Options{
		Memory:      o.cfg.buffers(),
		Concurrency: o.cfg.Concurrency,
		ReadTimeout: o.cfg.ReadTimeout,
		LimitRate:   o.cfg.LimitRate,
		Tardy:       o.cfg.Tardy,
		Store:       func(file int) direct.Store { return stores[i+file] },
	})
	return nil
}

// stores returns the local copies of all files, by file.
func (o *Opened) stores() ([]direct.Store, error) {
	stores := make([]direct.Store, len(o.Artifact.Files))
	for i, f := range o.Artifact.Files {
		if o.Cache == nil {
			if l := o.ordered.localFile(i); l != nil {
				stores[i] = l
			}
			continue
		}
		open, err := o.File(f)
		if err != nil {
			return nil, err
		}
		stores[i] = open.Filler()
	}
	return stores, nil
}

// has returns how many bytes of the payload of file i need not be fetched,
// if the cache is only read.
func (d *ordered) has(i int) int64 {
	if l := d.localFile(i); l != nil {
		return l.Cached()
	}
	return 0
}

func (d *ordered) close() {
	if d.payloads != nil {
		_ = d.payloads.Close() // it only ends requests
	}
	for _, l := range d.local {
		_ = l.Close() // it was only read
	}
}
