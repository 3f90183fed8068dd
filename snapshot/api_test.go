package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The names and types that programs written against epoch use.
var (
	_ string                                                                                                    = snapshot.CocoonBinaryEnv
	_ func(string) (string, error)                                                                              = snapshot.ResolveCocoonBinary
	_ func(context.Context, []byte, snapshot.Downloader, snapshot.StreamOptions) error                          = snapshot.Stream
	_ func(context.Context, *manifest.OCIManifest, snapshot.Downloader, snapshot.StreamOptions) error           = snapshot.StreamParsed
	_ func(context.Context, snapshot.Downloader, string, manifest.Descriptor) (*manifest.SnapshotConfig, error) = snapshot.FetchSnapshotConfig
	_ snapshot.CocoonRunner                                                                                     = &snapshot.ExecCocoon{Binary: "cocoon", Stderr: io.Discard}
	_ interface {
		ImageImport(context.Context, string) (io.WriteCloser, func() error, error)
	} = &snapshot.ExecCocoon{}
	_ = snapshot.ImportOptions{Name: "n", Description: "d"}
	_ = snapshot.PullOptions{Name: "n", Tag: "t", LocalName: "l", Description: "d", Progress: func(string) {}}
	_ = snapshot.PushOptions{Name: "n", Tag: "t", BaseImage: "b", Source: "s", Revision: "r", Progress: func(string) {}}
	_ = snapshot.StreamOptions{Name: "n", LocalName: "l", Writer: io.Discard, Progress: func(string) {}}
	_ = snapshot.PushResult{Name: "n", Tag: "t", ManifestDigest: "d", ManifestBytes: nil, TotalSize: 1, LayerCount: 1}
)

// The same of package manifest: media types, keys, and every field.
var (
	_ = [...]string{manifest.MediaTypeOCIEmpty, manifest.AnnotationDescription, manifest.AnnotationSnapshotID}
	_ = manifest.Descriptor{MediaType: "m", Digest: "d", Size: 1, Annotations: map[string]string{}, ArtifactType: "a"}
	_ = manifest.Platform{Architecture: "a", OS: "o", OSVersion: "1", Variant: "v"}
	_ = manifest.IndexManifest{MediaType: "m", Digest: "d", Size: 1, Platform: &manifest.Platform{}}
	_ = manifest.OCIManifest{
		SchemaVersion: 2, MediaType: "m", ArtifactType: "a", Config: manifest.Descriptor{}, Layers: []manifest.Descriptor{},
		Manifests: []manifest.IndexManifest{}, Subject: &manifest.Descriptor{}, Annotations: map[string]string{},
	}
	_ = manifest.SnapshotConfig{
		SchemaVersion: "v1", SnapshotID: "i", Description: "d",
		Image: "i", ImageDigest: "d", ImageType: "t", ImageBlobIDs: map[string]struct{}{},
		Hypervisor: "h", CPU: int(1), Memory: int64(1), Storage: int64(1), NICs: int(1), Network: "n", Windows: true,
		Files: map[string]manifest.SnapshotFile{}, CreatedAt: time.Time{},
	}
	_ = manifest.SnapshotFile{Mode: int64(1), SparseMap: "m", SparseSize: int64(1), Size: int64(1), Chunks: []string{}}
)

// registry is somebody else's: nothing but what the interfaces ask for.
type registry struct{ store *artifacttest.Store }

func (r registry) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	return r.store.GetManifest(ctx, name, tag)
}
func (r registry) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	return r.store.GetBlob(ctx, name, digest)
}
func (r registry) BlobExists(ctx context.Context, name, digest string) (bool, error) {
	return r.store.BlobExists(ctx, name, digest)
}
func (r registry) PutBlob(ctx context.Context, name, digest string, body io.Reader, size int64) error {
	return r.store.PutBlob(ctx, name, digest, body, size)
}
func (r registry) PutManifest(ctx context.Context, name, tag string, data []byte, contentType string) error {
	return r.store.PutManifest(ctx, name, tag, data, contentType)
}

// runner is somebody else's cocoon, in this process.
type runner struct {
	export   []byte
	exported string
	exitErr  error // how it ends, whatever it read or wrote
	endsWell bool  // it says that all is well, whatever it read
	stopAt   int64 // an import reads so much and ends; 0: all

	opts    snapshot.ImportOptions
	started bool
	files   map[string]artifacttest.Extracted
	err     error
}

func (r *runner) Export(_ context.Context, name string) (io.ReadCloser, func() error, error) {
	r.exported = name
	return io.NopCloser(bytes.NewReader(r.export)), func() error { return r.exitErr }, nil
}

func (r *runner) Import(_ context.Context, opts snapshot.ImportOptions) (io.WriteCloser, func() error, error) {
	r.opts, r.started = opts, true
	in, out := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var from io.Reader = in
		if r.stopAt > 0 {
			from = io.LimitReader(in, r.stopAt)
		}
		r.files, _, r.err = artifacttest.Extract(from)
		if r.stopAt == 0 {
			io.Copy(io.Discard, in)
		}
		in.CloseWithError(io.ErrClosedPipe)
	}()
	return out, func() error {
		<-done
		if r.exitErr != nil || r.endsWell {
			return r.exitErr
		}
		return r.err
	}, nil
}

// stuck is a registry that never gives one blob.
type stuck struct {
	registry
	digest string
}

func (s *stuck) GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error) {
	if digest == s.digest {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.registry.GetBlob(ctx, name, digest)
}

func TestPushAndPullWithOthersParts(t *testing.T) {
	reg := registry{artifacttest.NewStore()}
	local := &runner{export: readFile(t, "testdata/cocoon-export.tar")}
	var lines []string
	progress := func(s string) { lines = append(lines, s) }
	res, err := (&snapshot.Pusher{Uploader: reg, Cocoon: local}).Push(t.Context(), snapshot.PushOptions{Name: "vm", Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if res.Tag != "latest" || local.exported != "vm" || len(lines) != 6 {
		t.Errorf("%+v, exported %q, %q", res, local.exported, lines)
	}
	lines = nil
	p := &snapshot.Puller{Downloader: reg, Cocoon: local}
	if err := p.Pull(t.Context(), snapshot.PullOptions{Name: "vm", Description: "a copy", Progress: progress}); err != nil {
		t.Fatal(err)
	}
	if local.opts != (snapshot.ImportOptions{Name: "vm", Description: "a copy"}) {
		t.Errorf("%+v", local.opts)
	}
	expected(t).check(t, local.files)
	text := string(local.files["snapshot.json"].Data)
	if !strings.Contains(text, `"name": "vm"`) || !strings.Contains(text, `"description": "a copy"`) || !strings.Contains(text, `"disk_queue_size": 64`) {
		t.Errorf("envelope %s", text)
	}
	if len(lines) != 6 || lines[2] != "  cow.raw (360448 bytes)" {
		t.Errorf("%q", lines)
	}
}

// Without what epochfs adds, the envelope is made of the config.
func TestPullOfEpochsArtifact(t *testing.T) {
	store := artifacttest.NewStore()
	store.Add("team/vm", "t1", fixtures(t)["epoch"])
	local := &runner{}
	p := &snapshot.Puller{Downloader: registry{store}, Cocoon: local}
	if err := p.Pull(t.Context(), snapshot.PullOptions{Name: "team/vm", Tag: "t1", LocalName: "mine"}); err != nil {
		t.Fatal(err)
	}
	expected(t).check(t, local.files)
	if !strings.Contains(string(local.files["snapshot.json"].Data), `"name": "mine"`) || local.opts.Name != "mine" {
		t.Errorf("%s", local.files["snapshot.json"].Data)
	}
}

func TestEmptyNamesAreRefused(t *testing.T) {
	reg, local := registry{artifacttest.NewStore()}, &runner{}
	if _, err := (&snapshot.Pusher{Uploader: reg, Cocoon: local}).Push(t.Context(), snapshot.PushOptions{}); err == nil || err.Error() != "snapshot push: name is required" {
		t.Errorf("%v", err)
	}
	if err := (&snapshot.Puller{Downloader: reg, Cocoon: local}).Pull(t.Context(), snapshot.PullOptions{}); err == nil || err.Error() != "snapshot pull: name is required" {
		t.Errorf("%v", err)
	}
	if err := snapshot.Stream(t.Context(), nil, reg, snapshot.StreamOptions{Writer: io.Discard}); err == nil || err.Error() != "snapshot stream: name is required" {
		t.Errorf("%v", err)
	}
	if err := snapshot.Stream(t.Context(), nil, reg, snapshot.StreamOptions{Name: "vm"}); err == nil || err.Error() != "snapshot stream: writer is required" {
		t.Errorf("%v", err)
	}
	if _, err := (&snapshot.Pusher{Uploader: reg}).Push(t.Context(), snapshot.PushOptions{Name: "vm"}); err == nil {
		t.Error("a push from nowhere")
	}
	if local.started || local.exported != "" {
		t.Error("cocoon was started for nothing")
	}
}

// Cocoon is not started for what is no snapshot, and hears of a stream
// that breaks.
func TestPullThatFails(t *testing.T) {
	store := artifacttest.NewStore()
	store.Add("image", "latest", &artifacttest.Artifact{Manifest: []byte(`{"config":{"mediaType":"` + manifest.MediaTypeOCIImageConfig + `"}}`)})
	store.Add("cloud", "latest", artifacttest.CloudImage("d.qcow2", []byte("x")))
	for name, want := range map[string]string{
		"image": "manifest is container-image, not a snapshot",
		"cloud": "manifest is cloud-image, not a snapshot",
	} {
		local := &runner{}
		err := (&snapshot.Puller{Downloader: registry{store}, Cocoon: local}).Pull(t.Context(), snapshot.PullOptions{Name: name})
		if err == nil || err.Error() != want || local.started {
			t.Errorf("%v, started %v", err, local.started)
		}
		raw, _, err := store.GetManifest(t.Context(), name, "latest")
		if err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		opts := snapshot.StreamOptions{Name: name, Writer: &out}
		for how, err := range map[string]error{
			"raw":    snapshot.Stream(t.Context(), raw, store, opts),
			"parsed": snapshot.StreamParsed(t.Context(), m, store, opts),
		} {
			if err == nil || err.Error() != want || !errors.Is(err, snapshot.ErrKind) || out.Len() != 0 {
				t.Errorf("%s, %s: %v, %d bytes", name, how, err, out.Len())
			}
		}
	}

	store.Add("vm", "latest", fixtures(t)["epoch"])
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bad := art.Files[4].Parts[0].Digest
	store.Corrupt = func(d string, b []byte) []byte {
		if d == bad {
			b[len(b)-1] ^= 1
		}
		return b
	}
	local := &runner{}
	err = (&snapshot.Puller{Downloader: registry{store}, Cocoon: local}).Pull(t.Context(), snapshot.PullOptions{Name: "vm"})
	if err == nil || !strings.HasPrefix(err.Error(), "stream snapshot: ") || local.err == nil {
		t.Errorf("%v; the importer says %v", err, local.err)
	}

	store.Corrupt = nil
	local = &runner{stopAt: 10000, exitErr: errors.New("no space left")}
	err = (&snapshot.Puller{Downloader: registry{store}, Cocoon: local}).Pull(t.Context(), snapshot.PullOptions{Name: "vm"})
	if err == nil || err.Error() != "cocoon snapshot import: no space left" {
		t.Errorf("%v", err)
	}
	// A cocoon that ends well without having read all of it.
	for name, p := range map[string]*snapshot.Puller{
		"ours":    {Downloader: registry{store}, Cocoon: &snapshot.ExecCocoon{Binary: "/bin/true"}},
		"waiting": {Downloader: &stuck{registry{store}, bad}, Cocoon: &snapshot.ExecCocoon{Binary: "/bin/true"}},
		"theirs":  {Downloader: registry{store}, Cocoon: &runner{stopAt: 10000, endsWell: true}},
	} {
		err = p.Pull(t.Context(), snapshot.PullOptions{Name: "vm"})
		var failed *cocoon.Error
		if err == nil || err.Error() != "cocoon snapshot import ended before it had read the whole snapshot" || !errors.As(err, &failed) || errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	local = &runner{exitErr: errors.New("name taken")}
	err = (&snapshot.Puller{Downloader: registry{store}, Cocoon: local}).Pull(t.Context(), snapshot.PullOptions{Name: "vm"})
	if err == nil || err.Error() != "cocoon snapshot import: name taken" {
		t.Errorf("%v", err)
	}
}

// An export that fails is cocoon's fault, also when it wrote nothing or
// half; one that is cut and yet ends well is not believed.
func TestPushThatFails(t *testing.T) {
	export := readFile(t, "testdata/cocoon-export.tar")
	gone := errors.New("no such snapshot")
	for name, local := range map[string]*runner{
		"nothing":    {exitErr: gone},
		"half":       {export: export[:100000], exitErr: gone},
		"everything": {export: export, exitErr: gone},
	} {
		store := artifacttest.NewStore()
		_, err := (&snapshot.Pusher{Uploader: registry{store}, Cocoon: local}).Push(t.Context(), snapshot.PushOptions{Name: "vm", Snapshot: "other"})
		if !errors.Is(err, gone) || store.Calls("PutManifest") != 0 || local.exported != "other" {
			t.Errorf("%s: %v", name, err)
		}
	}
	store := artifacttest.NewStore()
	if _, err := (&snapshot.Pusher{Uploader: registry{store}, Cocoon: &runner{export: export[:100000]}}).Push(t.Context(), snapshot.PushOptions{Name: "vm"}); err == nil || store.Calls("PutManifest") != 0 {
		t.Errorf("half an export: %v", err)
	}
}
