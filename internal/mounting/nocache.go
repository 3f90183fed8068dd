package mounting

import (
	"context"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/internal/direct"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// keeper is what a downloader keeps manifests, configs and references in.
type keeper interface {
	Blob(digest string) ([]byte, error)
	PutBlob(digest string, data []byte) error
	Ref(reference string) (digest string, seen time.Time, err error)
	PutRef(reference, digest string) error
	PutArtifact(reference, digest string, files []*layout.File, src cache.Source, blobs []string) error
}

// nowhere is a keeper that keeps nothing.
type nowhere struct{}

func (nowhere) Blob(string) ([]byte, error)           { return nil, fs.ErrNotExist }
func (nowhere) PutBlob(string, []byte) error          { return nil }
func (nowhere) Ref(string) (string, time.Time, error) { return "", time.Time{}, fs.ErrNotExist }
func (nowhere) PutRef(string, string) error           { return nil }
func (nowhere) PutArtifact(string, string, []*layout.File, cache.Source, []string) error {
	return nil
}

// overhead is what a process takes beside the bytes that it holds for a
// payload: the program, stacks, connections' buffers and decoders.
const overhead = 112 << 20

// LeastMemory is the smallest Config.Memory that can be kept to.
const LeastMemory = overhead + direct.LeastMemory

// buffers is how much of Config.Memory is for bytes that are fetched; 0
// for the usual number.
func (c *Config) buffers() int64 {
	if c.Memory == 0 {
		return 0
	}
	return max(c.Memory-overhead, direct.LeastMemory)
}

// uncached is what an artifact is read from when nothing is kept: the
// registry, and what the cache happens to have.
type uncached struct {
	payloads *direct.Payloads
	local    []*cache.Local // by file; nil where the cache has nothing of it
}

func newUncached(o *Opened, cfg Config) *uncached {
	u := &uncached{local: make([]*cache.Local, len(o.Artifact.Files))}
	for i, f := range o.Artifact.Files {
		if l, err := cache.OpenLocal(cfg.CacheDir, f, o.source); err == nil {
			u.local[i] = l
		}
	}
	u.payloads = direct.New(o.source, o.Artifact.Files, direct.Options{
		Memory:      cfg.buffers(),
		Concurrency: cfg.Concurrency,
		ReadTimeout: cfg.ReadTimeout,
		LimitRate:   cfg.LimitRate,
		Local:       u.part,
	})
	return u
}

func (u *uncached) part(file, part int) io.Reader {
	if l := u.local[file]; l != nil {
		return l.Part(part)
	}
	return nil
}

// has is how many bytes of the payload of file i need not be fetched.
func (u *uncached) has(i int, f *layout.File) (n int64) {
	for p := range f.Parts {
		if u.part(i, p) != nil {
			n += f.Parts[p].Length
		}
	}
	return n
}

func (u *uncached) open(ctx context.Context, f *layout.File) (io.ReadCloser, error) {
	return u.payloads.OpenPayload(ctx, f)
}

func (u *uncached) copyFile(ctx context.Context, dst *os.File, i int, onBytes func(int64)) (bool, error) {
	if l := u.local[i]; l != nil {
		return l.CopyTo(ctx, dst, onBytes)
	}
	return false, nil
}

func (u *uncached) close() {
	_ = u.payloads.Close() // it only ends requests
	for _, l := range u.local {
		if l != nil {
			_ = l.Close() // it was only read
		}
	}
}
