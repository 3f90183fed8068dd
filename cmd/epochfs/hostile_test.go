package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/klauspost/compress/zstd"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

const (
	// hostileMemory is what a process may take at most, whatever it is
	// given to read, in KiB.
	hostileMemory = 256 << 10
	// hostileTime is the processor time that it may take at most.
	hostileTime = 60 * time.Second
)

// liar is a registry of one repository that serves what it was told to,
// under whatever name it was told to.
type liar struct {
	manifests map[string][]byte
	blobs     map[string][]byte
	endless   map[string]bool // blobs and manifests that go on for ever
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/vm/"), "/")
	body, ok := l.blobs[id]
	if strings.Contains(r.URL.Path, "/manifests/") {
		body, ok = l.manifests[id]
		w.Header().Set("Content-Type", manifest.MediaTypeOCIManifest)
	}
	switch {
	case l.endless[id]:
		for chunk := bytes.Repeat([]byte(" "), 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	}
}

func (l *liar) put(b []byte) string {
	l.blobs[digests.Of(b)] = b
	return digests.Of(b)
}

// snapshot puts a snapshot with the given config blob and layers.
func (l *liar) snapshot(tag string, config []byte, layers ...manifest.Descriptor) {
	l.raw(tag, manifest.OCIManifest{
		SchemaVersion: 2, MediaType: manifest.MediaTypeOCIManifest, ArtifactType: manifest.ArtifactTypeSnapshot,
		Config: manifest.Descriptor{MediaType: manifest.MediaTypeSnapshotConfig, Digest: l.put(config), Size: int64(len(config))},
		Layers: layers,
	})
}

func (l *liar) raw(tag string, m any) {
	raw, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	l.manifests[tag] = raw
}

// artifact puts one that was made well, and lets spoil see it.
func (l *liar) artifact(tag string, size int, o artifacttest.Options, spoil func(m *manifest.OCIManifest)) {
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: data}}, o)
	for _, b := range a.Blobs {
		l.put(b)
	}
	var m manifest.OCIManifest
	if err := json.Unmarshal(a.Manifest, &m); err != nil {
		panic(err)
	}
	if spoil != nil {
		spoil(&m)
	}
	l.raw(tag, m)
}

// chunks puts a split file of so many MiB, whose list of chunks spoil
// changes.
func (l *liar) chunks(tag string, n int, spoil func(list []string) []string) {
	a := artifacttest.Snapshot([]artifacttest.File{{Name: "memory-ranges", Data: bytes.Repeat([]byte("0123456789abcde\n"), n<<16)}},
		artifacttest.Options{V2: true, Chunk: 1 << 20, Edit: func(_ *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			f := cfg.Files["memory-ranges"]
			f.Chunks = spoil(f.Chunks)
			cfg.Files["memory-ranges"] = f
		}})
	for _, b := range a.Blobs {
		l.put(b)
	}
	l.manifests[tag] = a.Manifest
}

// layer is one that nobody will fetch.
func someLayer(title string) manifest.Descriptor {
	return manifest.Descriptor{
		MediaType: manifest.MediaTypeGeneric, Digest: digests.Of([]byte(title)), Size: 16,
		Annotations: map[string]string{manifest.AnnotationTitle: title},
	}
}

func newLiar() *liar {
	l := &liar{manifests: map[string][]byte{}, blobs: map[string][]byte{}, endless: map[string]bool{}}
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	files := func(each string, least int) []byte {
		b := []byte(`{"schemaVersion":"v1","files":{"memory-ranges":{"mode":420}`)
		for i := 0; len(b) < least; i++ {
			b = fmt.Appendf(b, `,"%x":%s`, i, each)
		}
		return append(b, "}}"...)
	}
	mem := someLayer("memory-ranges")

	l.snapshot("config of 64 MiB", append(bytes.Repeat([]byte(" "), 64<<20-22), `{"schemaVersion":"v9"}`...), mem)
	l.snapshot("config of more than 64 MiB", bytes.Repeat([]byte(" "), 64<<20+1), mem)
	l.snapshot("a config of files without layers", files("{}", 64<<20-100), mem)
	l.snapshot("config of one string", []byte(`{"schemaVersion":"v9","description":"`+strings.Repeat("x", 63<<20)+`"}`), mem)
	l.snapshot("config nested deeply", []byte(`{"schemaVersion":"v1","x":`+deep+`}`), mem)
	l.snapshot("files nested deeply", []byte(`{"schemaVersion":"v1","files":{"memory-ranges":{"x":`+deep+`}}}`), mem)
	l.manifests["manifest nested deeply"] = []byte(`{"schemaVersion":2,"x":` + deep + `}`)
	var many []byte
	for i := range 1_000_000 {
		many = fmt.Appendf(many, `,{"digest":"sha256:%064x","size":16}`, i)
	}
	l.manifests["a million layers"] = fmt.Appendf(nil, `{"schemaVersion":2,"artifactType":%q,"layers":[%s]}`, manifest.ArtifactTypeSnapshot, many[1:])
	l.manifests["empty layers"] = fmt.Appendf(nil, `{"schemaVersion":2,"artifactType":%q,"layers":[%s{}]}`, manifest.ArtifactTypeSnapshot, strings.Repeat("{},", 1_300_000))
	var segs []byte
	for i := range 1_000_000 {
		segs = fmt.Appendf(segs, `,{\"o\":%d,\"l\":1}`, 2*i)
	}
	mapped := func(text []byte, size int64) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":"v1","files":{"memory-ranges":{"mode":420,"sparseMap":"[%s]","sparseSize":%d}}}`, text, size)
	}
	l.snapshot("a million segments", mapped(segs[1:], 1<<40), mem)
	l.snapshot("a map of all a config takes", mapped(bytes.Repeat([]byte(`{},`), 21<<20), 64), mem)
	l.snapshot("size of 2^62", mapped([]byte(`{\"o\":0,\"l\":16}`), 1<<62), mem)
	l.snapshot("sizes that overflow", mapped([]byte(`{\"o\":9223372036854775800,\"l\":16}`), 1<<63-1), mem)
	l.snapshot("a sum that is not the size", mapped([]byte(`{\"o\":0,\"l\":15}`), 64), mem)

	l.chunks("chunk that no layer is", 3, func(list []string) []string { return append(list[:2:2], digests.Of([]byte("x"))) })
	l.chunks("chunk that is missing", 3, func(list []string) []string { return list[:2] })
	l.chunks("chunk of escapes", 3, func(list []string) []string { return append(list[:2:2], "\x1b[2J") })
	l.snapshot("title of escapes", []byte(`{"schemaVersion":"v1"}`), mem, someLayer("\x1b]0;title\a\u009b31m"))

	l.endless["endless-manifest"] = true
	endless := someLayer("endless config")
	l.endless[endless.Digest] = true
	endless.MediaType = manifest.MediaTypeSnapshotConfig
	l.raw("endless config", manifest.OCIManifest{SchemaVersion: 2, ArtifactType: manifest.ArtifactTypeSnapshot, Config: endless, Layers: []manifest.Descriptor{mem}})

	self := manifest.OCIManifest{SchemaVersion: 2, MediaType: manifest.MediaTypeOCIIndex, Manifests: []manifest.IndexManifest{{
		MediaType: manifest.MediaTypeOCIIndex, Digest: mem.Digest, Size: 300, Platform: &manifest.Platform{OS: "linux", Architecture: "amd64"},
	}}}
	l.raw("index of itself", self)
	l.manifests[mem.Digest] = l.manifests["index of itself"]

	// What can only be seen when the file is read.
	l.artifact("blob that goes on for ever", 1<<20, artifacttest.Options{}, func(m *manifest.OCIManifest) { l.endless[m.Layers[0].Digest] = true })
	l.artifact("blob shorter than announced", 2<<20, artifacttest.Options{}, func(m *manifest.OCIManifest) {
		l.blobs[m.Layers[0].Digest] = l.blobs[m.Layers[0].Digest][:1<<20]
	})
	l.artifact("blob longer than announced", 2<<20+16, artifacttest.Options{}, func(m *manifest.OCIManifest) {
		l.blobs[m.Layers[0].Digest] = append(l.blobs[m.Layers[0].Digest], "more"...)
	})
	frame := func(tag string, payload, says int, o ...zstd.EOption) {
		enc, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
		if err != nil {
			panic(err)
		}
		var b bytes.Buffer
		enc.Reset(&b)
		for n := 0; n < payload; n += 1 << 20 {
			if _, err := enc.Write(make([]byte, min(1<<20, payload-n))); err != nil {
				panic(err)
			}
		}
		_ = enc.Close()
		stored := b.Bytes()
		if tag == "frame with a huge window" {
			stored[5] = 21 << 3 // 2 GiB
		}
		l.snapshot(tag, fmt.Appendf(nil, `{"schemaVersion":"v2","files":{"memory-ranges":{"mode":420,"size":%d}}}`, says), manifest.Descriptor{
			MediaType: manifest.MediaTypeVMMemory + manifest.SuffixZstd, Digest: l.put(stored), Size: int64(len(stored)),
			Annotations: map[string]string{manifest.AnnotationTitle: "memory-ranges"},
		})
		var m manifest.OCIManifest
		_ = json.Unmarshal(l.manifests[tag], &m)
		m.ArtifactType = "application/vnd.cocoonstack.snapshot.v2+json"
		l.raw(tag, m)
	}
	frame("frame with a huge window", 64<<20, 64<<20, zstd.WithWindowSize(8<<20))
	frame("frame with the largest window, and less", 200<<20, 201<<20, zstd.WithWindowSize(128<<20))
	frame("frame of more than it must", 1<<30, 64<<20)
	frame("small frame of more than it must", 1<<30, 1<<20)
	return l
}

// underRace says that the race detector looks on: it takes many times the
// memory of what is made here, so that the test runs in a process without.
var underRace bool

// TestHostileArtifactsInBounds gives the program what must not be, as a
// process that is measured: exit code 6, one plain line, in bounded memory
// and time.
func TestHostileArtifactsInBounds(t *testing.T) {
	tier.Long(t, "builds the program, and measures it")
	t.Parallel()
	if underRace {
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", "^"+t.Name()+"$", ".")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	newLiar().check(t, buildPlain(t))
}

// check has the program read every artifact of the liar.
func (l *liar) check(t *testing.T, bin string) {
	tags := map[string]string{}
	for name, m := range maps.Clone(l.manifests) {
		if !strings.HasPrefix(name, "sha256:") {
			tag := strings.NewReplacer(" ", "-", "^", "-", ",", "").Replace(name)
			tags[name], l.manifests[tag] = tag, m
		}
	}
	if l.endless["endless-manifest"] {
		tags["manifest that goes on for ever"] = "endless-manifest"
	}
	srv := httptest.NewServer(l)
	defer srv.Close()
	for name, tag := range tags {
		t.Run(name, func(t *testing.T) {
			ref := strings.TrimPrefix(srv.URL, "http://") + "/vm:" + tag
			cmd := exec.Command(bin, "cat", "--quiet", "--cache-dir", filepath.Join(t.TempDir(), "cache"), "--read-timeout", "30s", ref, "memory-ranges")
			code, stderr, peak, took := measured(t, cmd)
			t.Logf("%d MiB, %.1f s: %s", peak>>10, took.Seconds(), stderr)
			if code != exitContent {
				t.Errorf("exit code %d", code)
			}
			lines := 0
			for line := range strings.Lines(stderr) {
				if !strings.HasPrefix(line, "time=") { // the log of what was dropped
					lines++
				}
				if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%q", line)
				}
			}
			if lines != 1 {
				t.Errorf("%d lines", lines)
			}
			if peak > hostileMemory || took > hostileTime {
				t.Errorf("%d MiB, %.1f s", peak>>10, took.Seconds())
			}
		})
	}
}

// measured runs a command and looks at the most memory it took, in KiB, and at
// its processor time. It ends a command that goes on for minutes.
func measured(t *testing.T, cmd *exec.Cmd) (code int, stderr string, peak int64, took time.Duration) {
	t.Helper()
	var out strings.Builder
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(5*hostileTime, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	for {
		peak = max(peak, highWater(status))
		select {
		case err := <-done:
			return exitOf(err), out.String(), peak, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		case <-time.After(time.Millisecond):
		}
	}
}

// highWater is VmHWM, which only grows; 0 when the process is gone.
func highWater(status string) (kib int64) {
	f, err := os.Open(status)
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if _, err := fmt.Sscanf(s.Text(), "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	return 0
}
