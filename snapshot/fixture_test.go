package snapshot_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fixtures are the artifacts that other tools made of one snapshot.
func fixtures(t testing.TB) map[string]*artifacttest.Artifact {
	t.Helper()
	all := map[string]*artifacttest.Artifact{}
	for name, at := range map[string][2]string{
		"epoch":     {"testdata/epoch-artifact", ""},
		"zstd":      {"testdata/v2-artifacts", "zstd"},
		"chunked":   {"testdata/v2-artifacts", "chunked"},
		"rawchunks": {"testdata/v2-artifacts", "rawchunks"},
	} {
		a, err := artifacttest.ReadLayout(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		all[name] = a
	}
	return all
}

type expectation map[string]struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func expected(t testing.TB) expectation {
	t.Helper()
	var want expectation
	if err := json.Unmarshal(readFile(t, "testdata/expected.json"), &want); err != nil {
		t.Fatal(err)
	}
	return want
}

func (want expectation) check(t *testing.T, files map[string]artifacttest.Extracted) {
	t.Helper()
	for name, w := range want {
		sum := sha256.Sum256(files[name].Data)
		if int64(len(files[name].Data)) != w.Size || hex.EncodeToString(sum[:]) != w.SHA256 {
			t.Errorf("%s has %d bytes and is %x", name, len(files[name].Data), sum)
		}
	}
	if len(files) != len(want)+1 {
		t.Errorf("%d files and %s, want %d", len(files)-1, snapshot.EnvelopeName, len(want))
	}
}

// untarred is what is in the tar that Stream writes.
func untarred(t testing.TB, store snapshot.Downloader, name, tag string) (map[string]artifacttest.Extracted, []string) {
	t.Helper()
	raw, _, err := store.GetManifest(t.Context(), name, tag)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	streamed := make(chan error, 1)
	go func() {
		err := snapshot.Stream(t.Context(), raw, store, snapshot.StreamOptions{Name: name, Writer: w})
		w.CloseWithError(err)
		streamed <- err
	}()
	files, names, err := artifacttest.Extract(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what follows the last entry
	}
	r.CloseWithError(err)
	if err := errors.Join(<-streamed, err); err != nil {
		t.Fatal(err)
	}
	return files, names
}

func extract(t testing.TB, tar []byte) (map[string]artifacttest.Extracted, []string) {
	t.Helper()
	files, names, err := artifacttest.Extract(bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	return files, names
}

// reading goes through the payload of a file: each has the place of its next
// bytes in the file, and a reader that gives them.
func reading(t testing.TB, src snapshot.Payloads, f *layout.File, each func(run sparse.Run, r io.Reader)) {
	t.Helper()
	body, err := src.OpenPayload(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	r := bufio.NewReaderSize(body, 64<<10)
	for run := range f.Map.Payload(0, f.PayloadSize()) {
		each(run, io.LimitReader(r, run.Length))
	}
	if more, err := io.Copy(io.Discard, r); err != nil || more > 0 {
		t.Fatalf("%s: %d bytes after its end, %v", f.Name, more, err)
	}
}

// readAs spreads a file's payload out as its map says.
func readAs(t testing.TB, src snapshot.Payloads, f *layout.File) []byte {
	t.Helper()
	data := make([]byte, f.Size())
	reading(t, src, f, func(run sparse.Run, r io.Reader) {
		if _, err := io.ReadFull(r, data[run.Offset:run.Offset+run.Length]); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	})
	return data
}

// holds says whether a file reads as data. It keeps nothing of it: memory
// that is touched for the first time is what takes longest under the race
// detector.
func holds(t testing.TB, src snapshot.Payloads, f *layout.File, data []byte) bool {
	t.Helper()
	same, end, buf := f.Size() == int64(len(data)), int64(0), make([]byte, 64<<10)
	reading(t, src, f, func(run sparse.Run, r io.Reader) {
		same = same && allZero(data[end:run.Offset])
		end = run.Offset
		for same && end < run.Offset+run.Length {
			n := min(int64(len(buf)), run.Offset+run.Length-end)
			if _, err := io.ReadFull(r, buf[:n]); err != nil {
				t.Fatalf("%s: %v", f.Name, err)
			}
			same = bytes.Equal(buf[:n], data[end:end+n])
			end += n
		}
		if !same {
			io.Copy(io.Discard, r)
		}
	})
	return same && allZero(data[end:])
}

func allZero(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }

func TestFixturesToTar(t *testing.T) {
	want := expected(t)
	for name, a := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			store := artifacttest.NewStore()
			store.Add("vm", "latest", a)
			files, names := untarred(t, store, "vm", "latest")
			want.check(t, files)
			if order := []string{"snapshot.json", "cocoon.json", "config.json", "cow.raw", "data-logs.qcow2", "memory-ranges", "state.json"}; !slices.Equal(names, order) {
				t.Errorf("order %v", names)
			}
			if f := files["cow.raw"]; f.Mode != 0o644 || f.PAX["COCOON.sparse.size"] != "16777216" {
				t.Errorf("cow.raw: mode %o, %v", f.Mode, f.PAX)
			}
			if files["config.json"].PAX != nil {
				t.Error("a file without holes has a map")
			}
		})
	}
}

func TestFixturesLoad(t *testing.T) {
	want := expected(t)
	for name, a := range fixtures(t) {
		store := artifacttest.NewStore()
		store.Add("team/vm", "latest", a)
		art, err := snapshot.Load(t.Context(), store, "team/vm", "latest", snapshot.LoadOptions{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if art.Kind != manifest.KindSnapshot || art.Digest != a.Digest() || art.Platform != "" || art.Index != "" || art.Created.IsZero() {
			t.Errorf("%s: %v %s %q %v", name, art.Kind, art.Digest, art.Platform, art.Created)
		}
		src := snapshot.DownloaderPayloads(store, "team/vm")
		for _, f := range art.Files {
			sum := sha256.Sum256(readAs(t, src, f))
			if got := hex.EncodeToString(sum[:]); got != want[f.Name].SHA256 || f.Size() != want[f.Name].Size {
				t.Errorf("%s: %s is %s", name, f.Name, got)
			}
		}
		var env struct {
			Version int
			Config  struct{ ID, Name string }
		}
		if err := json.Unmarshal(art.Envelope, &env); err != nil || env.Config.Name != "vm" || env.Config.ID != "HZSMAGQS2JB66QOQQWQNORH7AL" || env.Version != 1 {
			t.Errorf("%s: envelope %s, %v", name, art.Envelope, err)
		}
	}
}

// inputs are the ways a tar comes in: a file that can seek, a pipe.
func inputs(tar []byte) map[string]func() io.Reader {
	return map[string]func() io.Reader{
		"file": func() io.Reader { return bytes.NewReader(tar) },
		"pipe": func() io.Reader { return io.MultiReader(bytes.NewReader(tar)) },
	}
}

// uploaders are a registry that takes streams and one that does not.
func uploaders(s *artifacttest.Store) map[string]snapshot.Uploader {
	return map[string]snapshot.Uploader{"stream": s, "plain": struct{ snapshot.Uploader }{s}}
}

// What epoch made of the export is what Push makes of it, byte for byte
// where it can be.
func TestFixturePush(t *testing.T) {
	export := readFile(t, "testdata/cocoon-export.tar")
	epoch := fixtures(t)["epoch"]
	for how, input := range inputs(export) {
		for kind := range uploaders(artifacttest.NewStore()) {
			t.Run(how+" to "+kind, func(t *testing.T) {
				store := artifacttest.NewStore()
				p := &snapshot.Pusher{Uploader: uploaders(store)[kind]}
				res, err := p.Push(t.Context(), snapshot.PushOptions{Name: "vm", Input: input()})
				if err != nil {
					t.Fatal(err)
				}
				raw, mediaType, err := store.GetManifest(t.Context(), "vm", "latest")
				if err != nil || mediaType != manifest.MediaTypeOCIManifest || !bytes.Equal(raw, res.ManifestBytes) {
					t.Fatalf("%s, %v", mediaType, err)
				}
				compareManifests(t, raw, epoch.Manifest)
				compareConfigs(t, store, raw, epoch)
				if res.Tag != "latest" || res.Name != "vm" || res.LayerCount != 6 || !strings.HasPrefix(res.ManifestDigest, "sha256:") {
					t.Errorf("%+v", res)
				}
				checkRoundTrip(t, store, export)
			})
		}
	}
}

func compareManifests(t *testing.T, got, want []byte) {
	t.Helper()
	m, err := manifest.Parse(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := manifest.Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m.Layers, w.Layers) {
		t.Errorf("layers %+v", m.Layers)
	}
	m.Config.Digest, m.Config.Size = w.Config.Digest, w.Config.Size
	m.Annotations[manifest.AnnotationCreated] = w.Annotations[manifest.AnnotationCreated]
	if again, err := json.MarshalIndent(m, "", "  "); err != nil || !bytes.Equal(again, want) {
		t.Errorf("manifest, config and time aside:\n%s", again)
	}
}

func compareConfigs(t *testing.T, store *artifacttest.Store, raw []byte, epoch *artifacttest.Artifact) {
	t.Helper()
	keys := func(raw []byte, blob func(string) []byte) map[string]json.RawMessage {
		m, err := manifest.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		var cfg map[string]json.RawMessage
		if err := json.Unmarshal(blob(m.Config.Digest), &cfg); err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	got := keys(raw, store.Blob)
	for key, want := range keys(epoch.Manifest, func(d string) []byte { return epoch.Blobs[d] }) {
		if key != "createdAt" && !bytes.Equal(got[key], want) {
			t.Errorf("config key %s is %s, want %s", key, got[key], want)
		}
		if got[key] == nil {
			t.Errorf("config has no %s", key)
		}
		delete(got, key)
	}
	for _, key := range []string{"imageDigest", "imageType", "engine", "dev.epochfs.envelope", "dev.epochfs.pieces"} {
		if got[key] == nil {
			t.Errorf("config has no %s", key)
		}
		delete(got, key)
	}
	if len(got) != 0 {
		t.Errorf("config has %v too", got)
	}
}

// checkRoundTrip: the tar that comes out again has the export's entries,
// and an envelope that is the export's but for the name.
func checkRoundTrip(t *testing.T, store *artifacttest.Store, export []byte) {
	t.Helper()
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want, order := extract(t, export)
	if !bytes.Equal(art.Envelope, want["snapshot.json"].Data) {
		t.Errorf("envelope %s", art.Envelope)
	}
	for _, f := range art.Files {
		if f.Parts[0].Pieces == nil || f.Parts[0].Pieces.Size != 256<<10 {
			t.Errorf("%s: pieces %+v", f.Name, f.Parts[0].Pieces)
		}
	}
	var buf bytes.Buffer
	if err := art.WriteTar(t.Context(), &buf, snapshot.DownloaderPayloads(store, "vm"), snapshot.TarOptions{LocalName: "copy"}); err != nil {
		t.Fatal(err)
	}
	got, names := extract(t, buf.Bytes())
	if !slices.Equal(names, order) {
		t.Errorf("order %v", names)
	}
	renamed := strings.Replace(string(want["snapshot.json"].Data), `"name": "fixture"`, `"name": "copy"`, 1)
	if string(got["snapshot.json"].Data) != renamed {
		t.Errorf("envelope %s", got["snapshot.json"].Data)
	}
	for _, name := range order[1:] {
		g, w := got[name], want[name]
		if !bytes.Equal(g.Data, w.Data) || g.Mode != w.Mode || g.PAX["COCOON.sparse.map"] != w.PAX["COCOON.sparse.map"] || g.PAX["COCOON.sparse.size"] != w.PAX["COCOON.sparse.size"] {
			t.Errorf("%s is not the same again", name)
		}
	}
}

// A second push sends nothing but the config: its time is new.
func TestPushTwiceSendsOnce(t *testing.T) {
	store := artifacttest.NewStore()
	export := readFile(t, "testdata/cocoon-export.tar")
	p := &snapshot.Pusher{Uploader: store}
	var sent atomic.Int64
	opts := snapshot.PushOptions{Name: "vm", Input: bytes.NewReader(export), OnBytes: func(n int64) { sent.Add(n) }}
	res, err := p.Push(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if n := sent.Load(); n != res.TotalSize {
		t.Errorf("%d bytes sent of %d", n, res.TotalSize)
	}
	first := store.Calls("PutBlob")
	opts.Input = bytes.NewReader(export)
	if _, err := p.Push(t.Context(), opts); err != nil {
		t.Fatal(err)
	}
	if n := store.Calls("PutBlob") - first; n != 1 || store.Calls("UploadBlob") != 0 {
		t.Errorf("%d blobs sent again", n)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
