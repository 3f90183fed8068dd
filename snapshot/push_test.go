package snapshot_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func pushTo(t testing.TB, up snapshot.Uploader, in io.Reader) (*snapshot.PushResult, error) {
	t.Helper()
	return (&snapshot.Pusher{Uploader: up}).Push(t.Context(), snapshot.PushOptions{Name: "vm", Input: in, SpoolDir: t.TempDir()})
}

// Random files go up and come down again, whatever way the tar comes in
// and the blobs go out.
func TestPushRandomFiles(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	files := []artifacttest.File{
		artifacttest.RandomFile(rng, "cow.raw", 12*mib),
		artifacttest.RandomFile(rng, "memory-ranges", 9*mib),
		{Name: "big.qcow2", Data: pattern(3*mib + 1), Mode: 0o600},
		{Name: "empty"},
	}
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for how, input := range inputs(export) {
		for kind := range uploaders(artifacttest.NewStore()) {
			store := artifacttest.NewStore()
			if _, err := pushTo(t, uploaders(store)[kind], input()); err != nil {
				t.Fatalf("%s to %s: %v", how, kind, err)
			}
			art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range art.Files {
				if !holds(t, snapshot.DownloaderPayloads(store, "vm"), f, files[i].Data) {
					t.Errorf("%s to %s: %s differs", how, kind, f.Name)
				}
				checkPieces(t, f, files[i].Payload())
			}
			if string(art.Envelope) != artifacttest.Envelope || art.Files[2].Mode != 0o600 {
				t.Errorf("%s to %s: envelope %s", how, kind, art.Envelope)
			}
			if streamed := store.Calls("UploadBlob"); (streamed > 0) != (how == "pipe" && kind == "stream") {
				t.Errorf("%s to %s: %d blobs streamed", how, kind, streamed)
			}
		}
	}
}

// checkPieces hashes the payload again, piece by piece.
func checkPieces(t *testing.T, f *layout.File, payload []byte) {
	t.Helper()
	p := f.Parts[0].Pieces
	if len(payload) == 0 {
		if p != nil {
			t.Errorf("%s: pieces of nothing", f.Name)
		}
		return
	}
	if p == nil {
		t.Errorf("%s has no piece digests", f.Name)
		return
	}
	for i := int64(0); i*p.Size < int64(len(payload)); i++ {
		if p.Sum(i) != sha256.Sum256(payload[i*p.Size:min((i+1)*p.Size, int64(len(payload)))]) {
			t.Errorf("%s: piece %d of %d bytes has another digest", f.Name, i, p.Size)
		}
	}
}

func TestPushOptions(t *testing.T) {
	store := artifacttest.NewStore()
	var lines []string
	res, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), snapshot.PushOptions{
		Name: "vm", Tag: "v2", BaseImage: "base:1", Source: "src", Revision: "rev",
		Annotations: map[string]string{"k": "v"}, Progress: func(s string) { lines = append(lines, s) },
		Input: bytes.NewReader(artifacttest.Tar(artifacttest.Envelope, cow())),
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(res.ManifestBytes)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		manifest.AnnotationSnapshotBaseImage: "base:1", manifest.AnnotationSource: "src",
		manifest.AnnotationRevision: "rev", "k": "v",
	} {
		if m.Annotations[key] != want {
			t.Errorf("%s is %q", key, m.Annotations[key])
		}
	}
	if _, err := time.Parse(time.RFC3339, m.Annotations[manifest.AnnotationCreated]); err != nil || len(m.Annotations) != 5 {
		t.Errorf("%v", m.Annotations)
	}
	if want := fmt.Sprintf("  cow.raw -> %s (16 bytes)", m.Layers[0].Digest); len(lines) != 1 || lines[0] != want {
		t.Errorf("%q", lines)
	}
	if res.Tag != "v2" || res.TotalSize != 16+m.Config.Size {
		t.Errorf("%+v", res)
	}
}

func TestPushOfGzip(t *testing.T) {
	export := artifacttest.Tar(artifacttest.Envelope, cow())
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	z.Write(export)
	z.Close()
	for how, input := range inputs(buf.Bytes()) {
		if _, err := pushTo(t, artifacttest.NewStore(), input()); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
	broken := bytes.Clone(buf.Bytes())
	broken[len(broken)-6] ^= 1 // its checksum
	if _, err := pushTo(t, artifacttest.NewStore(), bytes.NewReader(broken)); !errors.Is(err, layout.ErrContent) {
		t.Errorf("gzip with a wrong checksum: %v", err)
	}
}

// A tar that ends anywhere before its end mark pushes nothing.
func TestPushOfACutTar(t *testing.T) {
	export := artifacttest.Tar(artifacttest.Envelope, smallFiles(t))
	end := len(export) - 1024
	for cut := 0; cut < end+512; cut += 101 {
		for how, input := range inputs(export[:cut]) {
			store := artifacttest.NewStore()
			if _, err := pushTo(t, store, input()); !errors.Is(err, layout.ErrContent) {
				t.Errorf("%s cut at %d of %d: %v", how, cut, len(export), err)
			}
			if store.Calls("PutManifest") != 0 {
				t.Errorf("cut at %d: has a manifest", cut)
			}
		}
	}
	for _, cut := range []int{512, 1024, 1536, end, end + 511} { // borders, where archive/tar says plain EOF
		for how, input := range inputs(export[:cut]) {
			if _, err := pushTo(t, artifacttest.NewStore(), input()); !errors.Is(err, layout.ErrContent) {
				t.Errorf("%s cut at %d: %v", how, cut, err)
			}
		}
	}
}

// rawTar writes headers as they are.
func rawTar(t testing.TB, envelope string, hdrs ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if envelope != "" {
		hdrs = append([]*tar.Header{{Name: "snapshot.json", Size: int64(len(envelope)), Mode: 0o644}}, hdrs...)
	}
	for _, h := range hdrs {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		body := []byte(strings.Repeat("x", int(h.Size)))
		if h.Name == "snapshot.json" {
			body = []byte(envelope)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestPushRefusesWhatNobodyCouldRead(t *testing.T) {
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Size: 8, Mode: 0o644} }
	sparseFile := func(text, size string) *tar.Header {
		return &tar.Header{Name: "cow.raw", Size: 8, PAXRecords: map[string]string{"COCOON.sparse.map": text, "COCOON.sparse.size": size}}
	}
	noSize := sparseFile(`[{"o":0,"l":8}]`, "")
	delete(noSize.PAXRecords, "COCOON.sparse.size")
	env := artifacttest.Envelope
	for name, export := range map[string][]byte{
		"no envelope":              rawTar(t, "", file("cow.raw")),
		"no files":                 rawTar(t, env),
		"a path":                   rawTar(t, env, file("a/b")),
		"an absolute path":         rawTar(t, env, file("/etc/passwd")),
		"a parent":                 rawTar(t, env, file("../x")),
		"an escape":                rawTar(t, env, file("a\x1b[2J")),
		"one name twice":           rawTar(t, env, file("x"), file("./x")),
		"two envelopes":            rawTar(t, env, &tar.Header{Name: "snapshot.json", Size: int64(len(env))}, file("x")),
		"a symlink":                rawTar(t, env, &tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "y"}),
		"a map of another size":    rawTar(t, env, sparseFile(`[{"o":0,"l":9}]`, "16")),
		"a map that overlaps":      rawTar(t, env, sparseFile(`[{"o":0,"l":4},{"o":3,"l":4}]`, "16")),
		"a map without a size":     rawTar(t, env, noSize),
		"a map of a negative size": rawTar(t, env, sparseFile(`[]`, "-1")),
		"a map of no size":         rawTar(t, env, sparseFile(`[{"o":0,"l":8}]`, "x")),
		"a negative mode":          rawTar(t, env, &tar.Header{Name: "x", Size: 8, Mode: -1}),
		"envelope that is none":    rawTar(t, "[]", file("x")),
		"envelope not UTF-8":       rawTar(t, `{"config":{"name":"`+"\xff"+`"}}`, file("x")),
		"envelope too large":       rawTar(t, `{"config":{"name":"`+strings.Repeat("x", 256<<10)+`"}}`, file("x")),
		"a file is missing":        rawTar(t, `{"config":{},"files":["x","y"]}`, file("x")),
		"no tar":                   []byte(strings.Repeat("no tar at all ", 100)),
		"nothing":                  nil,
	} {
		for how, input := range inputs(export) {
			store := artifacttest.NewStore()
			if _, err := pushTo(t, store, input()); !errors.Is(err, layout.ErrContent) {
				t.Errorf("%s, %s: %v", name, how, err)
			}
			if store.Calls("PutManifest") != 0 {
				t.Errorf("%s, %s: has a manifest", name, how)
			}
		}
	}
	store := artifacttest.NewStore()
	if _, err := pushTo(t, store, bytes.NewReader(rawTar(t, env, &tar.Header{Name: "x", Size: 8, Mode: 0o104751}))); err != nil {
		t.Fatal(err)
	}
	if art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); err != nil || art.Config.Files["x"].Mode != 0o751 {
		t.Errorf("a file with more than permissions: %v", err)
	}
	empty := sparseFile("[]", "0")
	empty.Size = 0
	if _, err := pushTo(t, store, bytes.NewReader(rawTar(t, env, empty))); err != nil {
		t.Errorf("an empty map of an empty file: %v", err)
	}
	if art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{}); err != nil || art.Files[0].Size() != 0 || art.Files[0].MapText != "[]" {
		t.Errorf("an empty map of an empty file, read again: %v", err)
	}
	ok := rawTar(t, env, &tar.Header{Name: "./", Typeflag: tar.TypeDir}, file("./x"))
	if _, err := pushTo(t, artifacttest.NewStore(), bytes.NewReader(ok)); err != nil {
		t.Errorf("a tar of a directory: %v", err)
	}
}

// What the envelope says in another way than expected does not stop a
// push, which keeps the envelope as it is.
func TestPushOfAnEnvelopeOfOtherTypes(t *testing.T) {
	env := `{"config":{"id":"i","cpu":2.0,"memory":1e9,"image":"base","image_blob_ids":{"a":1},"name":"n","windows":true},"files":[{"name":"y"}],"version":"2"}`
	store := artifacttest.NewStore()
	var warnings []string
	_, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), snapshot.PushOptions{
		Name: "vm", Input: bytes.NewReader(rawTar(t, env, &tar.Header{Name: "x", Size: 8})),
		Warn: func(s string) { warnings = append(warnings, strings.Fields(s)[0]) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"config.cpu", "config.memory", "config.image_blob_ids", "files"}; !slices.Equal(warnings, want) {
		t.Errorf("warned of %q", warnings)
	}
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := art.Config
	if string(art.Envelope) != env || c.SnapshotID != "i" || c.Image != "base" || !c.Windows || c.CPU != 0 || c.Memory != 0 || len(c.ImageBlobIDs) != 0 {
		t.Errorf("%s\n%+v", art.Envelope, c)
	}
}

func TestPushSaysWhoFailed(t *testing.T) {
	export := artifacttest.Tar(artifacttest.Envelope, smallFiles(t))
	broken := io.MultiReader(bytes.NewReader(export[:3000]), iotest.ErrReader(errBroken))
	if _, err := pushTo(t, artifacttest.NewStore(), broken); !errors.Is(err, errBroken) || errors.Is(err, layout.ErrContent) {
		t.Errorf("input that breaks: %v", err)
	}
	refusing := &failing{Store: artifacttest.NewStore()}
	if _, err := pushTo(t, refusing, bytes.NewReader(export)); !errors.Is(err, errBroken) {
		t.Errorf("registry that refuses: %v", err)
	}
	lying := &lying{Store: artifacttest.NewStore()}
	big := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "x", Data: pattern(3 * mib)}})
	if _, err := pushTo(t, lying, io.MultiReader(bytes.NewReader(big))); err == nil || lying.Calls("PutManifest") != 0 {
		t.Errorf("registry that has another digest: %v", err)
	}
}

type failing struct{ *artifacttest.Store }

func (*failing) PutBlob(context.Context, string, string, io.Reader, int64) error { return errBroken }

type lying struct{ *artifacttest.Store }

func (l *lying) UploadBlob(ctx context.Context, name string, body io.Reader) (string, int64, error) {
	_, n, err := l.Store.UploadBlob(ctx, name, body)
	return chunkDigest(0), n, err
}

// Nothing is left of what was spooled.
func TestSpoolIsEmptyAfterwards(t *testing.T) {
	dir := t.TempDir()
	export := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "x", Data: pattern(3 * mib)}})
	store := artifacttest.NewStore()
	p := &snapshot.Pusher{Uploader: struct{ snapshot.Uploader }{store}}
	opts := snapshot.PushOptions{Name: "vm", Input: io.MultiReader(bytes.NewReader(export)), SpoolDir: dir}
	if _, err := p.Push(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}
