package mounting

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

func TestMain(m *testing.M) {
	if fs.IsTry() {
		os.Exit(fs.TryMain())
	}
	if name := os.Getenv(mapperEnv); name != "" {
		os.Exit(mapper(name))
	}
	goleak.VerifyTestMain(m)
}

// place is a registry with one artifact, and a cache directory.
type place struct {
	t     *testing.T
	front *registrytest.Front
	cfg   Config
	ref   string
}

func newPlace(t *testing.T, backend http.Handler, a *artifacttest.Artifact) *place {
	t.Helper()
	front := registrytest.NewFront(t, backend)
	p := &place{t: t, front: front, ref: front.Host + "/team/vm:v1", cfg: Config{
		CacheDir:    filepath.Join(t.TempDir(), "cache"),
		ReadTimeout: 20 * time.Second,
		Tardy:       10 * time.Second, // requests are counted
		EpochServer: front.URL,
		EpochToken:  "token",
	}}
	ref, err := p.cfg.Reference(p.ref)
	if err != nil {
		t.Fatal(err)
	}
	reg, err := p.cfg.Registry(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	if err := a.Push(t.Context(), reg, ref.Repository, ref.Tag); err != nil {
		t.Fatal(err)
	}
	front.Reset()
	return p
}

// open opens ref and closes it with the test.
func (p *place) open(ref string) (*Opened, error) {
	o, err := Open(p.t.Context(), ref, p.cfg)
	if err == nil {
		p.t.Cleanup(func() {
			if err := o.Close(); err != nil {
				p.t.Error(err)
			}
		})
	}
	return o, err
}

func (p *place) mustOpen(ref string) *Opened {
	p.t.Helper()
	o, err := p.open(ref)
	if err != nil {
		p.t.Fatal(err)
	}
	return o
}

// cost is the manifest and blob requests since it was last asked for.
func (p *place) cost() (manifests, blobs int) {
	c := p.front.Counts()
	p.front.Reset()
	return c.Manifests, c.Blobs
}

var files = []artifacttest.File{
	{Name: "config.json", Data: []byte(`{"cpus":2}`)},
	{Name: "memory-ranges", Data: bytes.Repeat([]byte("memory "), 300_000)},
}

func simple() *artifacttest.Artifact {
	return artifacttest.Snapshot(files, artifacttest.Options{Envelope: artifacttest.Envelope, Piece: 256 << 10})
}

// read reads a file, as a mount does, and waits until it was verified.
func read(t *testing.T, o *Opened, f *layout.File) []byte {
	t.Helper()
	open, err := o.File(f)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, f.Size())
	if _, err := open.ReadAt(t.Context(), data, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := open.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpenAsksOnce(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	if m, b := p.cost(); m != 1 || b != 1 {
		t.Errorf("first: %d manifests, %d blobs", m, b)
	}
	if len(o.Notes) != 0 {
		t.Errorf("notes: %q", o.Notes)
	}
	if want := strings.TrimSuffix(p.ref, ":v1") + "@" + o.Artifact.Digest; o.Reference.String() != want {
		t.Errorf("reference is %s, want %s", o.Reference, want)
	}
	p.mustOpen(p.ref)
	if m, b := p.cost(); m != 1 || b != 0 {
		t.Errorf("by tag again: %d manifests, %d blobs", m, b)
	}
	p.mustOpen(o.Reference.String())
	if m, b := p.cost(); m != 0 || b != 0 {
		t.Errorf("by digest: %d manifests, %d blobs", m, b)
	}
	if n := p.front.Counts().Other; n != 0 {
		t.Errorf("by digest: %d other requests", n)
	}
}

func TestPayloadsAndSizes(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	if s, err := o.Sizes(); err != nil || s.Local != 0 || s.Data != int64(len(files[0].Data)+len(files[1].Data)) {
		t.Fatalf("sizes before: %+v, %v", s, err)
	}
	for i, f := range o.Artifact.Files {
		if got := read(t, o, f); !bytes.Equal(got, files[i].Data) {
			t.Errorf("%s: %d bytes, other ones than expected", f.Name, len(got))
		}
	}
	if s, err := o.Sizes(); err != nil || s.Local != s.Data || s.Stored != s.Data || s.Apparent != s.Data {
		t.Errorf("sizes after: %+v, %v", s, err)
	}
	a, err := o.File(o.Artifact.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	if b, err := o.File(o.Artifact.Files[0]); err != nil || a != b {
		t.Errorf("a file was opened twice: %p %p, %v", a, b, err)
	}
}

func TestWithoutRegistry(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	seen := p.mustOpen(p.ref)
	read(t, seen, seen.Artifact.Files[0])
	p.front.Inject(&registrytest.Fault{Drop: true})
	o := p.mustOpen(p.ref)
	if len(o.Notes) != 1 || !strings.Contains(o.Notes[0], "not reachable") {
		t.Errorf("notes: %q", o.Notes)
	}
	if got := read(t, o, o.Artifact.Files[0]); !bytes.Equal(got, files[0].Data) {
		t.Errorf("cached file is %q", got)
	}
	p.front.Clear()
	p.front.Reset()
	p.cfg.Offline = true
	o = p.mustOpen(p.ref)
	if len(o.Notes) != 0 {
		t.Errorf("notes: %q", o.Notes)
	}
	r, err := o.OpenPayload(t.Context(), o.Artifact.Files[1])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, ErrOffline) {
		t.Errorf("offline read of what is not there: %v", err)
	}
	for _, ref := range []string{
		p.front.Host + "/team/vm:other",
		p.front.Host + "/team/vm@sha256:" + strings.Repeat("0", 64),
	} {
		if _, err := p.open(ref); !errors.Is(err, ErrOffline) {
			t.Errorf("offline open of %s: %v", ref, err)
		}
	}
	if c := p.front.Counts(); c.Manifests+c.Blobs+c.Other != 0 {
		t.Errorf("offline asked the registry: %+v", c)
	}
}

// A registry that says no is not one that cannot be reached.
func TestGoneTagIsGone(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	p.mustOpen(p.ref)
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/manifests/"), Status: http.StatusNotFound})
	if _, err := p.open(p.ref); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("open = %v", err)
	}
	p.front.Clear()
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/manifests/"), Status: http.StatusForbidden})
	if _, err := p.open(p.ref); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("open = %v", err)
	}
}

func TestNoteAboutRange(t *testing.T) {
	p := newPlace(t, &epochlike.Server{Token: "token"}, simple())
	o := p.mustOpen(p.ref)
	if len(o.Notes) != 1 || !strings.Contains(o.Notes[0], "ignores Range") {
		t.Errorf("notes: %q", o.Notes)
	}
	p.front.Reset()
	for i, f := range o.Artifact.Files {
		if got := read(t, o, f); !bytes.Equal(got, files[i].Data) {
			t.Errorf("%s: %d bytes, other ones than expected", f.Name, len(got))
		}
	}
	for digest, n := range p.front.BlobBytes() {
		if n > int64(len(files[1].Data)) {
			t.Errorf("%s was sent more than once: %d bytes", digest, n)
			for _, r := range p.front.Requests() {
				t.Log(r.Method, r.Path, r.Header.Get("Range"), r.Status(), r.Sent())
			}
		}
	}
}

// The size of chunks that the manifest does not tell stands in a frame's
// header: read once, and then kept.
func TestFrameHeaderIsKept(t *testing.T) {
	const chunk = 3 << 20 // of 7 MiB: three chunks are also what 2.5 MiB would give
	data := bytes.Repeat([]byte("0123456789abcdef"), 7<<20/16)
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{Zstd: true, Chunk: chunk})
	p := newPlace(t, registrytest.NewHandler(), a)
	o := p.mustOpen(p.ref)
	if parts := o.Artifact.Files[0].Parts; len(parts) != 3 || parts[0].Length != chunk {
		t.Fatalf("parts: %+v", parts)
	}
	p.front.Reset()
	o = p.mustOpen(o.Reference.String())
	if m, b := p.cost(); m != 0 || b != 0 {
		t.Errorf("again: %d manifests, %d blobs", m, b)
	}
	if got := read(t, o, o.Artifact.Files[0]); !bytes.Equal(got, data) {
		t.Error("the payload is another one")
	}
}

// A config, and a frame's header, that do not come at once are asked for
// again, whether there is no answer, a refusal for now or a body that
// breaks off.
func TestSmallBlobsAreAskedForAgain(t *testing.T) {
	t.Parallel()
	data := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16) // in two chunks, of 3 or 4 MiB
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, artifacttest.Options{Zstd: true, Chunk: 4 << 20})
	p := newPlace(t, registrytest.NewHandler(), a)
	var n atomic.Int64
	p.front.Inject(&registrytest.Fault{Match: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && n.Add(1)%3 == 1
	}, Status: http.StatusServiceUnavailable})
	p.front.Inject(&registrytest.Fault{Match: func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && n.Load()%3 == 2
	}, Drop: true})
	p.mustOpen(p.ref)
	if _, b := p.cost(); b != 6 {
		t.Errorf("%d requests for two blobs, of which every third is answered", b)
	}
}

func TestIndexChildIsTold(t *testing.T) {
	x := artifacttest.Index([]string{"linux/arm64", "linux/amd64"}, []*artifacttest.Artifact{
		artifacttest.Snapshot(files[:1], artifacttest.Options{}), simple(),
	})
	p := newPlace(t, registrytest.NewHandler(), x)
	o := p.mustOpen(p.ref)
	if len(o.Notes) != 1 || !strings.Contains(o.Notes[0], "linux/amd64") || len(o.Artifact.Files) != 2 {
		t.Errorf("%d files, notes: %q", len(o.Artifact.Files), o.Notes)
	}
	if o.Reference.Digest != o.Artifact.Digest || o.Artifact.Digest == x.Digest() {
		t.Errorf("reference %s, artifact %s, index %s", o.Reference, o.Artifact.Digest, x.Digest())
	}
}

func TestWrongConfig(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Flip: 5})
	if _, err := p.open(p.ref); !errors.Is(err, layout.ErrContent) {
		t.Errorf("open with a changed config: %v", err)
	}
	p.front.Clear()
	p.mustOpen(p.ref) // and nothing of it was kept
}

func TestConfigOfAnySize(t *testing.T) {
	t.Parallel()
	big := artifacttest.Snapshot(files, artifacttest.Options{Edit: func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		cfg.Description = strings.Repeat("x", 2<<20)
	}})
	p := newPlace(t, registrytest.NewHandler(), big)
	if o := p.mustOpen(p.ref); len(o.Artifact.Config.Description) != 2<<20 {
		t.Errorf("description has %d bytes", len(o.Artifact.Config.Description))
	}
}

func TestCacheThatCannotBe(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	p.cfg.CacheDir = "/dev/null/cache"
	if _, err := p.open(p.ref); !errors.Is(err, ErrCache) {
		t.Errorf("open = %v", err)
	}
}

func TestOpenIsCancelled(t *testing.T) {
	p := newPlace(t, registrytest.NewHandler(), simple())
	ctx, cancel := context.WithCancel(t.Context())
	p.front.Inject(&registrytest.Fault{Match: func(r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			cancel()
		}
		return false
	}})
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("/blobs/"), Stall: 10})
	if _, err := Open(ctx, p.ref, p.cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("open = %v", err)
	}
}
