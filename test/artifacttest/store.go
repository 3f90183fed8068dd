package artifacttest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// Uploader is what a registry must be to take an artifact; package
// snapshot's interface of that name.
type Uploader interface {
	BlobExists(ctx context.Context, name, digest string) (bool, error)
	PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error
	PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error
}

// Push uploads an artifact and its children, by digest, under a tag.
func (a *Artifact) Push(ctx context.Context, up Uploader, name, tag string) error {
	for _, c := range a.Children {
		if err := c.Push(ctx, up, name, c.Digest()); err != nil {
			return err
		}
	}
	for _, d := range sortedKeys(a.Blobs) {
		ok, err := up.BlobExists(ctx, name, d)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if err := up.PutBlob(ctx, name, d, bytes.NewReader(a.Blobs[d]), int64(len(a.Blobs[d]))); err != nil {
			return err
		}
	}
	return up.PutManifest(ctx, name, tag, a.Manifest, a.MediaType)
}

// Store is a registry in memory: package snapshot's Downloader,
// Uploader, RangeDownloader and StreamUploader. What is not there is
// fs.ErrNotExist. It is safe for concurrent use.
type Store struct {
	mu        sync.Mutex
	manifests map[string]stored // by name and tag or digest
	blobs     map[string][]byte // by digest; every name sees them
	calls     map[string]int

	// Corrupt, where set, may change what GetBlob and GetBlobRange return
	// of a blob. It is not told the range.
	Corrupt func(digest string, data []byte) []byte
}

type stored struct {
	data      []byte
	mediaType string
}

// NewStore makes an empty one.
func NewStore() *Store {
	return &Store{manifests: map[string]stored{}, blobs: map[string][]byte{}, calls: map[string]int{}}
}

// Add puts an artifact in, as Push would.
func (s *Store) Add(name, tag string, a *Artifact) {
	if err := a.Push(context.Background(), s, name, tag); err != nil {
		panic(err)
	}
}

// Calls is how often a method was called.
func (s *Store) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Blob returns a blob's bytes, or nil if it does not exist.
func (s *Store) Blob(digest string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blobs[digest]
}

// GetManifest takes a tag or a digest.
func (s *Store) GetManifest(_ context.Context, name, tag string) ([]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["GetManifest"]++
	m, ok := s.manifests[name+"\n"+tag]
	if !ok {
		return nil, "", fmt.Errorf("manifest %s:%s: %w", name, tag, fs.ErrNotExist)
	}
	return m.data, m.mediaType, nil
}

func (s *Store) get(method, d string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[method]++
	data, ok := s.blobs[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	if s.Corrupt != nil {
		data = s.Corrupt(d, bytes.Clone(data))
	}
	return data, nil
}

// GetBlob opens a whole blob.
func (s *Store) GetBlob(_ context.Context, _, d string) (io.ReadCloser, error) {
	data, err := s.get("GetBlob", d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

// GetBlobRange opens bytes [off, off+n) of a blob.
func (s *Store) GetBlobRange(_ context.Context, _, d string, off, n int64) (io.ReadCloser, error) {
	data, err := s.get("GetBlobRange", d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), off, n)), nil
}

// BlobExists reports whether a blob exists.
func (s *Store) BlobExists(_ context.Context, _, d string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["BlobExists"]++
	_, ok := s.blobs[d]
	return ok, nil
}

// PutBlob takes a blob of just that digest and size.
func (s *Store) PutBlob(_ context.Context, _, d string, body io.Reader, size int64) error {
	data, err := readSized(body, size)
	if err != nil {
		return err
	}
	if got := digests.Of(data); got != d || int64(len(data)) != size {
		return fmt.Errorf("blob of %d bytes, %s, announced as %d, %s", len(data), got, size, d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["PutBlob"]++
	s.blobs[d] = data
	return nil
}

// readSized is io.ReadAll for a body of which the size is known most of the
// time: a buffer that grows is copied again and again, and the race detector
// looks at every byte of each copy.
func readSized(body io.Reader, size int64) ([]byte, error) {
	const most = 64 << 20 // what is announced need not be true
	buf := bytes.NewBuffer(make([]byte, 0, max(0, min(size, most))+bytes.MinRead))
	_, err := buf.ReadFrom(body)
	return buf.Bytes(), err
}

// spare are buffers that have grown. A sync.Pool loses some on purpose under
// the race detector, for which new memory is the dearest.
var spare = make(chan *bytes.Buffer, 4)

// readUnsized is io.ReadAll by way of a spare buffer.
func readUnsized(body io.Reader) ([]byte, error) {
	var buf *bytes.Buffer
	select {
	case buf = <-spare:
		buf.Reset()
	default:
		buf = new(bytes.Buffer)
	}
	defer func() {
		select {
		case spare <- buf:
		default:
		}
	}()
	_, err := buf.ReadFrom(body)
	return bytes.Clone(buf.Bytes()), err
}

// UploadBlob takes a blob whose digest nobody knows yet.
func (s *Store) UploadBlob(_ context.Context, _ string, body io.Reader) (string, int64, error) {
	data, err := readUnsized(body)
	if err != nil {
		return "", 0, err
	}
	d := digests.Of(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["UploadBlob"]++
	s.blobs[d] = data
	return d, int64(len(data)), nil
}

// PutManifest takes a manifest under a tag, and under its digest.
func (s *Store) PutManifest(_ context.Context, name, tag string, data []byte, contentType string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls["PutManifest"]++
	s.manifests[name+"\n"+tag] = stored{data, contentType}
	s.manifests[name+"\n"+digests.Of(data)] = stored{data, contentType}
	return nil
}

// ReadLayout reads an artifact out of an OCI image layout on disk: the
// one that index.json gives the name ref, or the only one where ref is "".
func ReadLayout(dir, ref string) (*Artifact, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	var index struct {
		Manifests []manifest.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, err
	}
	blob := func(d string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(d, "sha256:")))
	}
	for _, d := range index.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] != ref {
			continue
		}
		a := &Artifact{MediaType: d.MediaType, Blobs: map[string][]byte{}}
		if a.Manifest, err = blob(d.Digest); err != nil {
			return nil, err
		}
		m, err := manifest.Parse(a.Manifest)
		if err != nil {
			return nil, err
		}
		for _, l := range append(m.Layers, m.Config) {
			if a.Blobs[l.Digest], err = blob(l.Digest); err != nil {
				return nil, err
			}
		}
		return a, nil
	}
	return nil, fmt.Errorf("%s: nothing is called %q: %w", dir, ref, fs.ErrNotExist)
}
