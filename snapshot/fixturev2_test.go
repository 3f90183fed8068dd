package snapshot_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// What the newer tools made of the export in format v2 is what Push makes
// of it: the same layers where nothing is compressed, and else the same but
// for what a frame is, and the keys of the config as they write them.
func TestFixturePushV2(t *testing.T) {
	export := readFile(t, "testdata/cocoon-export.tar")
	for name, opts := range map[string]snapshot.PushOptions{
		"zstd":      {Zstd: 3, Chunk: 512 * mib},
		"chunked":   {Zstd: 3, Chunk: mib},
		"rawchunks": {Chunk: mib},
	} {
		t.Run(name, func(t *testing.T) {
			store := artifacttest.NewStore()
			opts.Name, opts.Input = "vm", bytes.NewReader(export)
			res, err := (&snapshot.Pusher{Uploader: store}).Push(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			others := fixtures(t)[name]
			theirs := others.Manifest
			frames := opts.Zstd > 0
			if got, want := withoutFrames(t, res.ManifestBytes, frames), withoutFrames(t, theirs, frames); got != want {
				t.Errorf("manifest\n%s\nwant\n%s", got, want)
			}
			got := configKeys(t, res.ManifestBytes, store.Blob, frames)
			for key, want := range configKeys(t, theirs, func(d string) []byte { return others.Blobs[d] }, frames) {
				if key != "createdAt" && got[key] != want {
					t.Errorf("config key %s is %s, want %s", key, got[key], want)
				}
				delete(got, key)
			}
			delete(got, "engine") // TestEnvelopeOfEngine reads it
			if delete(got, "dev.epochfs.envelope"); len(got) != 0 {
				t.Errorf("config has %v too", got)
			}
		})
	}
}

// withoutFrames is a manifest without its config and times and, where there
// are frames, without their digests and sizes.
func withoutFrames(t *testing.T, raw []byte, frames bool) string {
	t.Helper()
	m, err := manifest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	m.Config.Digest, m.Config.Size = "", 0
	delete(m.Annotations, manifest.AnnotationCreated)
	for i := range m.Layers {
		if l := &m.Layers[i]; frames && strings.HasSuffix(l.MediaType, manifest.SuffixZstd) {
			l.Digest, l.Size = "", 0
		}
	}
	return string(mustJSON(t, m))
}

// configKeys are a config blob's values, the digests of frames left out.
func configKeys(t *testing.T, raw []byte, blob func(string) []byte, frames bool) map[string]string {
	t.Helper()
	m, err := manifest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	text := blob(m.Config.Digest)
	for _, l := range m.Layers {
		if frames && strings.HasSuffix(l.MediaType, manifest.SuffixZstd) {
			text = bytes.ReplaceAll(text, []byte(l.Digest), nil)
		}
	}
	var cfg map[string]json.RawMessage
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for key, value := range cfg {
		keys[key] = string(value)
	}
	return keys
}
