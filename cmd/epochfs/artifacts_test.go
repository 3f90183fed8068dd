package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// put uploads an artifact to the script's registry.
func (w *world) put(ts *testscript.TestScript, a *artifacttest.Artifact, repo, tag string) {
	cfg := mounting.Config{EpochServer: w.front.URL, EpochToken: epochToken}
	ref, err := cfg.Reference(w.front.Host + "/" + repo + ":" + tag)
	ts.Check(err)
	reg, err := cfg.Registry(ref)
	ts.Check(err)
	defer reg.Close()
	ts.Check(a.Push(context.Background(), reg, repo, tag))
}

// seed LAYOUT NAME REPO TAG: an artifact of the fixtures, "-" for the only
// one of its layout.
func (w *world) seed(ts *testscript.TestScript, _ bool, args []string) {
	a, err := artifacttest.ReadLayout(filepath.Join(ts.Getenv("FIXTURES"), args[0]), strings.Trim(args[1], "-"))
	ts.Check(err)
	w.put(ts, a, args[2], args[3])
}

// imageParts are a cloud image's disk, as it is split.
var imageParts = [][]byte{[]byte("QFI\xfb the first part, "), []byte("the second, "), []byte("and the last")}

// cloudimage REPO FILE: a cloud image of three parts, and in FILE its disk.
func (w *world) cloudImage(ts *testscript.TestScript, _ bool, args []string) {
	w.put(ts, artifacttest.CloudImage("disk.qcow2", imageParts...), args[0], "latest")
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), bytes.Join(imageParts, nil), 0o600))
}

// containerimage REPO: what docker pushes.
func (w *world) containerImage(ts *testscript.TestScript, _ bool, args []string) {
	m := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPut, w.front.URL+"/v2/"+args[0]+"/manifests/latest", strings.NewReader(m))
	ts.Check(err)
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	req.Header.Set("Authorization", "Bearer "+epochToken)
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		ts.Fatalf("put a manifest: %s", resp.Status)
	}
}

// index REPO: an image index of two snapshots whose config.json tells the
// platform.
func (w *world) index(ts *testscript.TestScript, _ bool, args []string) {
	platforms := []string{"linux/arm64", "linux/amd64"}
	var children []*artifacttest.Artifact
	for _, p := range platforms {
		children = append(children, artifacttest.Snapshot([]artifacttest.File{{Name: "config.json", Data: []byte(p)}}, artifacttest.Options{}))
	}
	w.put(ts, artifacttest.Index(platforms, children), args[0], "latest")
}

// bigtar FILE [MIB]: an export tar with a memory-ranges of 1 GiB, of which MIB,
// or 96 MiB, in the middle and a little at the end are data.
func bigtar(ts *testscript.TestScript, _ bool, args []string) {
	const mib, gib = 1 << 20, 1 << 30
	middle := int64(96 * mib)
	if len(args) > 1 {
		n, err := strconv.ParseInt(args[1], 10, 16)
		ts.Check(err)
		middle = n * mib
	}
	segs := fmt.Sprintf(`[{"o":%d,"l":%d},{"o":%d,"l":%d}]`, (gib-middle)/2, middle, gib-mib, mib)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	tw := tar.NewWriter(f)
	entry := func(h *tar.Header, r io.Reader) {
		h.Mode = 0o644
		ts.Check(tw.WriteHeader(h))
		_, err := io.CopyN(tw, r, h.Size)
		ts.Check(err)
	}
	for _, name := range []string{"snapshot.json", "config.json"} {
		text := `{"version":1,"config":{"name":"big","id":"B16"}}`
		entry(&tar.Header{Name: name, Size: int64(len(text))}, strings.NewReader(text))
	}
	entry(&tar.Header{Name: "memory-ranges", Size: middle + mib, PAXRecords: map[string]string{
		"COCOON.sparse.map": segs, "COCOON.sparse.size": fmt.Sprint(gib),
	}}, rand.NewChaCha8([32]byte{3}))
	ts.Check(errors.Join(tw.Close(), f.Close()))
}

// hostility is what a registry may do to a snapshot with one sparse and
// one plain file.
var hostility = map[string]func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig){
	"parent":         title("../x"),
	"absolute":       title("/etc/passwd"),
	"subdirectory":   title("a/b"),
	"dot":            title("."),
	"dotdot":         title(".."),
	"empty name":     title(""),
	"nul":            title("a\x00b"),
	"newline":        title("a\nb"),
	"escape":         title("a\x1b[31mb"),
	"c1 control":     title("a\u009bb"),
	"envelope":       title("snapshot.json"),
	"long name":      title(strings.Repeat("x", 256)),
	"twice":          title("memory-ranges"),
	"overlapping":    sparseMap(`[{"o":0,"l":8},{"o":4,"l":8}]`, 64),
	"descending":     sparseMap(`[{"o":32,"l":8},{"o":0,"l":8}]`, 64),
	"negative":       sparseMap(`[{"o":-8,"l":8},{"o":16,"l":8}]`, 64),
	"negative sum":   sparseMap(`[{"o":0,"l":24},{"o":32,"l":-8}]`, 64),
	"out of range":   sparseMap(`[{"o":0,"l":8},{"o":60,"l":8}]`, 64),
	"overflowing":    sparseMap(`[{"o":9223372036854775800,"l":16}]`, 9223372036854775807),
	"sum too small":  sparseMap(`[{"o":0,"l":8}]`, 64),
	"sum too large":  sparseMap(`[{"o":0,"l":60}]`, 64),
	"negative size":  sparseMap(`[{"o":0,"l":16}]`, -1),
	"size of 2^62":   sparseMap(`[{"o":0,"l":16}]`, 1<<62),
	"no JSON":        sparseMap(`[{"o":0,`, 64),
	"encoded in v1":  func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers[0].MediaType += "+zstd" },
	"unknown type":   func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers[0].MediaType += "+lz4" },
	"wrong digest":   func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers[0].Digest = "sha256:../../x" },
	"negative layer": func(m *manifest.OCIManifest, _ *manifest.SnapshotConfig) { m.Layers[0].Size = -1 },
}

func title(name string) func(*manifest.OCIManifest, *manifest.SnapshotConfig) {
	return func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		m.Layers[1].Annotations[manifest.AnnotationTitle] = name
		cfg.Files[name] = cfg.Files["config.json"]
	}
}

func sparseMap(text string, size int64) func(*manifest.OCIManifest, *manifest.SnapshotConfig) {
	return func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
		f := cfg.Files["memory-ranges"]
		f.SparseMap, f.SparseSize = text, size
		cfg.Files["memory-ranges"] = f
	}
}

// escapes REPO: a good snapshot whose texts would take over a terminal is
// shown by every command without a control character.
func (w *world) escapes(ts *testscript.TestScript, _ bool, args []string) {
	const text = "a\x1b[31m\u009b2J\r\b\x07\u202e\x7fz"
	envelope := `{"version":1,"config":{"name":"a\u001b[2J\u009b\u202e","\u001bkey":"\u0007"}}`
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "config.json", Data: []byte("{}")}}, artifacttest.Options{
		Edit: func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			m.Annotations = map[string]string{text: text}
			for _, key := range []string{manifest.AnnotationSnapshotBaseImage, manifest.AnnotationSource, manifest.AnnotationRevision, manifest.AnnotationCreated} {
				m.Annotations[key] = text
			}
			m.Layers[0].Annotations[text] = text
			cfg.Envelope = &envelope
		}})
	w.put(ts, a, args[0], "latest")
	ref := w.front.Host + "/" + args[0]
	shown := 0
	for _, cmd := range [][]string{
		{"inspect", ref}, {"inspect", "--json", ref}, {"ls", ref}, {"cat", ref, "config.json"}, {"cache", "ls"}, {"cache", "du", "--json"},
		{"--verbose", "materialize", "-o", "out.tar", ref}, {"inspect", ref + "@" + text}, {"cat", ref, text},
	} {
		_ = ts.Exec("epochfs", cmd...) // some name what is not there
		for _, name := range []string{"stdout", "stderr"} {
			got := ts.ReadFile(name)
			if strings.ContainsFunc(strings.ReplaceAll(got, "\n", ""), func(r rune) bool { return !unicode.IsPrint(r) }) {
				ts.Fatalf("epochfs %s: %s has a control character: %q", cmd, name, got)
			}
			shown += strings.Count(got, "31m")
		}
	}
	if shown < 4 {
		ts.Fatalf("the text was shown %d times: too few to say anything", shown)
	}
}

// hostile REPO: what must not be ends every command with exit code 6, and
// nothing of it is written outside the cache.
func (w *world) hostile(ts *testscript.TestScript, _ bool, args []string) {
	segs, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 8}, {Offset: 32, Length: 8}}, 64)
	ts.Check(err)
	data := make([]byte, 64)
	copy(data, "01234567")
	copy(data[32:], "89abcdef")
	files := []artifacttest.File{
		{Name: "memory-ranges", Data: data, Map: segs},
		{Name: "config.json", Data: []byte("{}")},
	}
	ts.Check(os.MkdirAll(ts.MkAbs("mnt"), 0o700))
	before, err := tree(w.work)
	ts.Check(err)
	for name, edit := range hostility {
		tag := strings.NewReplacer(" ", "-", "^", "-").Replace(name)
		w.put(ts, artifacttest.Snapshot(files, artifacttest.Options{Edit: edit}), args[0], tag)
		ref := w.front.Host + "/" + args[0] + ":" + tag
		for _, cmd := range [][]string{
			{"mount", ref, "mnt"}, {"inspect", ref}, {"ls", ref}, {"cat", ref, "config.json"},
			{"materialize", "-o", "-", ref},
		} {
			if got := exitOf(ts.Exec("epochfs", cmd...)); got != exitContent {
				ts.Fatalf("%s: epochfs %s: exit code %d, want %d", name, cmd[0], got, exitContent)
			}
			text := ts.ReadFile("stderr")
			if strings.Count(text, "\n") != 1 || strings.ContainsAny(text, "\x00\x1b\u009b") {
				ts.Fatalf("%s: epochfs %s: stderr is no plain line: %q", name, cmd[0], text)
			}
			if out := ts.ReadFile("stdout"); out != "" {
				ts.Fatalf("%s: epochfs %s: stdout is %q", name, cmd[0], out)
			}
		}
	}
	after, err := tree(w.work)
	ts.Check(err)
	if !slices.Equal(before, after) {
		ts.Fatalf("before: %q\nafter:  %q", before, after)
	}
}
