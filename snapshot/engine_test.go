package snapshot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

// engine is a config object with keys that only newer cocoons write.
const engine = `{"memory":8388608,"cpu":2,"storage":16777216,"shared_memory":true,"nic_mtus":[9000],` +
	`"id":"HZSMAGQS2JB66QOQQWQNORH7AL","name":"vm-a","big":12345678901234567890,"text":"<&>"}`

// firecracker is the files of a Firecracker snapshot.
func firecracker() []artifacttest.File {
	return []artifacttest.File{
		{Name: "vmstate", Data: pattern(5000)}, {Name: "mem", Data: pattern(3*mib + 17)},
		{Name: "cow.raw", Data: pattern(mib)}, {Name: "cocoon.json", Data: []byte("{}")}, {Name: "data-logs.raw", Data: pattern(4096)},
	}
}

// withKey is an artifact whose config blob has another key. The name of the key
// under which cocoonstack's newest library keeps the config object was not to
// be seen in any copy of it: engine is the name of its Go field.
func withKey(t *testing.T, key, value string) *artifacttest.Artifact {
	t.Helper()
	return artifacttest.Snapshot(firecracker(), artifacttest.Options{EditConfig: func(blob []byte) []byte {
		blob = bytes.TrimSuffix(blob, []byte("}"))
		return slices.Concat(blob, []byte(`,"`+key+`":`+value+"}"))
	}})
}

// An artifact of other tools gets an envelope of the config object that it
// kept: every key, in its order, with the list of files.
func TestEnvelopeOfEngine(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"engine", "engineConfig", "raw"} {
		art, _ := mustLoad(t, withKey(t, key, engine))
		var got struct {
			Version int
			Config  json.RawMessage
			Files   []string
		}
		if err := json.Unmarshal(art.Envelope, &got); err != nil {
			t.Fatal(err)
		}
		var config bytes.Buffer
		if err := json.Compact(&config, got.Config); err != nil {
			t.Fatal(err)
		}
		if config.String() != engine || got.Version != 1 || !slices.Equal(got.Files, []string{"vmstate", "mem", "cow.raw", "cocoon.json", "data-logs.raw"}) {
			t.Errorf("under %s:\n%s", key, art.Envelope)
		}
		_, store := mustLoad(t, withKey(t, key, engine))
		files, _ := untarred(t, store, "vm", "latest")
		if !strings.Contains(string(files[snapshot.EnvelopeName].Data), `"name": "vm"`) {
			t.Errorf("the tar's envelope: %s", files[snapshot.EnvelopeName].Data)
		}
	}
}

// Another object is not the config object, nor is one of two that could be.
func TestEnvelopeWithoutEngine(t *testing.T) {
	t.Parallel()
	for key, value := range map[string]string{
		"labels": `{"a":"b"}`, "engineConfig": `{"cpu":3,"id":"another"}`, "one": engine + `,"two":` + engine,
	} {
		art, _ := mustLoad(t, withKey(t, key, value))
		if strings.Contains(string(art.Envelope), "nic_mtus") || !strings.Contains(string(art.Envelope), `"files"`) {
			t.Errorf("%s: %s", key, art.Envelope)
		}
	}
}

// What is not strict is refused, pushed or read.
func TestStrictEnvelopes(t *testing.T) {
	t.Parallel()
	for _, config := range []string{
		`5`, `[]`, `"x"`, `{"name":"a","name":"b"}`, `{"x":[{"y":1,"y":2}]}`, `{"n\u0061me":"a","name":"b"}`,
		`{"name":"\ud800"}`, `{"name":"\udc00\ud800"}`, `{"name":"\ud83dx"}`,
	} {
		if _, _, err := load(t, withKey(t, "engine", config)); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s was read: %v", config, err)
		}
	}
	for _, text := range []string{
		`{"config":null}`, `{"version":1}`, `{"Config":{}}`, `{"config":{},"config":{}}`, "{\"config\":{\"name\":\"\xff\"}}",
		`{"config":{"name":"\ud800"}}`, `{"config":{"a":{"b":1,"b":2}}}`, `{"config":{},"files":["cow.raw","gone"]}`,
	} {
		tar := artifacttest.Tar(text, firecracker())
		if _, err := pushTo(t, artifacttest.NewStore(), bytes.NewReader(tar)); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s was pushed: %v", text, err)
		}
		if strings.Contains(text, "\xff") {
			continue // JSON cannot keep it
		}
		if _, _, err := load(t, artifacttest.Snapshot(firecracker(), artifacttest.Options{Envelope: text})); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%s was read: %v", text, err)
		}
	}
	for _, text := range []string{
		`{"config":{"name":"a","Name":"b","text":"\ud83d\ude00 \\ud800 \u00e9"},"files":["cow.raw","mem","snapshot.json"]}`,
		`{"config":{"a":{"x":1},"b":{"x":1},"c":[{"x":1},{"x":1}]},"Version":2}`,
	} {
		art, _ := mustLoad(t, artifacttest.Snapshot(firecracker(), artifacttest.Options{Envelope: text}))
		if string(art.Envelope) != text {
			t.Errorf("%s became %s", text, art.Envelope)
		}
	}
}

// A push writes the config object for other tools, and knows keys by their
// exact case.
func TestPushWritesEngine(t *testing.T) {
	t.Parallel()
	store := artifacttest.NewStore()
	text := `{"version":1,"config":` + strings.Replace(engine, `"cpu"`, `"CPU"`, 1) + `}`
	if _, err := pushTo(t, store, bytes.NewReader(artifacttest.Tar(text, firecracker()))); err != nil {
		t.Fatal(err)
	}
	art, err := snapshot.Load(t.Context(), store, "vm", "latest", snapshot.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := errors.Join(decodeNumbers(text, &want), decodeNumbers(`{"version":1,"config":`+string(art.Config.Engine)+`}`, &got)); err != nil {
		t.Fatal(err)
	}
	if a, b := marshalled(want), marshalled(got); a != b || art.Config.CPU != 0 || art.Config.Memory != 8<<20 || string(art.Envelope) != text {
		t.Errorf("%s, want %s; %+v", b, a, art.Config)
	}
	for _, f := range art.Files {
		if got := manifest.IsMemory(f.Name, f.MediaType); got != (f.Name == "mem") {
			t.Errorf("%s of type %s: memory is %v", f.Name, f.MediaType, got)
		}
	}
}

func decodeNumbers(text string, to *any) error {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	return dec.Decode(to)
}

func marshalled(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
