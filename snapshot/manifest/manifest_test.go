package manifest

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

func TestClassify(t *testing.T) {
	for text, want := range map[string]Kind{
		`{"artifactType":"` + ArtifactTypeSnapshot + `"}`:                                           KindSnapshot,
		`{"artifactType":"` + ArtifactTypeSnapshotV2 + `","mediaType":"` + MediaTypeOCIIndex + `"}`: KindSnapshot,
		`{"artifactType":"` + ArtifactTypeOSImage + `"}`:                                            KindCloudImage,
		`{"artifactType":"` + ArtifactTypeWindowsImage + `"}`:                                       KindCloudImage,
		`{"config":{"mediaType":"` + MediaTypeOCIImageConfig + `"}}`:                                KindContainerImage,
		`{"config":{"mediaType":"` + MediaTypeDockerConfig + `"}}`:                                  KindContainerImage,
		`{"mediaType":"` + MediaTypeOCIIndex + `"}`:                                                 KindImageIndex,
		`{"mediaType":"` + MediaTypeDockerIndex + `"}`:                                              KindImageIndex,
		`{"manifests":[{"digest":"x"}]}`:                                                            KindImageIndex,
		`{"mediaType":"` + MediaTypeOCIManifest + `"}`:                                              KindUnknown,
		`{"artifactType":"application/vnd.cocoonstack.snapshot.v3+json"}`:                           KindUnknown,
		`{}`: KindUnknown,
	} {
		if got, err := Classify([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if kind, err := Classify([]byte(`{`)); err == nil || kind != KindUnknown {
		t.Errorf("%v, %v", kind, err)
	}
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[Kind]string{
		KindUnknown: "unknown", KindContainerImage: "container-image", KindCloudImage: "cloud-image",
		KindSnapshot: "snapshot", KindImageIndex: "image-index", Kind(99): "unknown",
	} {
		if kind.String() != want {
			t.Errorf("%d: %s", kind, kind)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	for name, want := range map[string]string{
		"config.json": MediaTypeVMConfig, "state.json": MediaTypeVMState, "memory-ranges": MediaTypeVMMemory,
		"cidata.img": MediaTypeVMCidata, "overlay.qcow2": MediaTypeDiskQcow2, "data-logs.qcow2": MediaTypeDiskQcow2,
		"cow.raw": MediaTypeDiskRaw, "cocoon.json": MediaTypeGeneric, "": MediaTypeGeneric, "raw": MediaTypeGeneric,
	} {
		got := MediaTypeForCocoonFile(name)
		if got != want || !IsLayerMediaType(got) {
			t.Errorf("%s: %s", name, got)
		}
	}
	for name, mt := range map[string]string{"mem": MediaTypeGeneric, "memory-ranges": "", "memory-range-0": "", "x": MediaTypeVMMemory, "y": MediaTypeVMMemory + SuffixZstd} {
		if !IsMemory(name, mt) {
			t.Errorf("%s of type %q is no memory", name, mt)
		}
	}
	for _, name := range []string{"vmstate", "mem.raw", "memory.json", "cow.raw"} {
		if IsMemory(name, MediaTypeForCocoonFile(name)) {
			t.Errorf("%s is memory", name)
		}
	}
	if IsDiskMediaType(MediaTypeVMMemory) || !IsDiskMediaType(MediaTypeWindowsDiskRawPart) || IsLayerMediaType(MediaTypeTar) {
		t.Error("disks and layers are mixed up")
	}
}

// The config blob that epoch wrote comes out again byte for byte.
func TestConfigRoundTrip(t *testing.T) {
	for _, path := range []string{
		"../testdata/epoch-artifact/blobs/sha256/b306e6d4d5537b653f6090c2086b1ae6c0065bae2f64bf8eaae9b1822b73bca4",
		"../testdata/v2-artifacts/blobs/sha256/bf32fd009f555dc51dbf15ff43ed71cfce260b5cba91e85375ed0a3feda851af",
	} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var cfg SnapshotConfig
		if err := json.Unmarshal(raw, &cfg); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(&cfg)
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%s:\n%s\n%v", path, again, err)
		}
	}
}

// manifests are what other tools wrote.
var manifests = []string{
	"../testdata/epoch-artifact/blobs/sha256/b10f09e8fa31e749f38dc4fe81c3fef0112e9de3d3d317fc9c5d902ae16b91ea",
	"../testdata/v2-artifacts/blobs/sha256/a6db0ff4fa9cd5d3e5f7cab60b0d1418cab65dd359f1ae1244288c2e928f36ed",
}

func TestManifestRoundTrip(t *testing.T) {
	for _, path := range manifests {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.MarshalIndent(m, "", "  ")
		if err != nil || !bytes.Equal(raw, again) {
			t.Errorf("%s:\n%s\n%v", path, again, err)
		}
	}
}

// FuzzParse: whatever comes, no panic, one kind for both ways of asking,
// and a parsed manifest parses to the same again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"artifactType":"` + ArtifactTypeSnapshot + `","layers":[{"digest":"d","size":-1,"annotations":{"` + AnnotationTitle + `":"../x"}}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"d","platform":{"os":"linux","architecture":"amd64"}},{"platform":null}]}`))
	f.Add([]byte(`{"mediaType":"` + MediaTypeOCIIndex + `","subject":{"size":9223372036854775807}}`))
	f.Add([]byte(`[]`))
	for _, path := range manifests {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(raw)
		kind, kerr := Classify(raw)
		if (err == nil) != (kerr == nil) {
			t.Fatalf("Parse: %v, Classify: %v", err, kerr)
		}
		if err != nil {
			return
		}
		if kind != ClassifyParsed(m) {
			t.Fatalf("%v and %v", kind, ClassifyParsed(m))
		}
		for _, l := range m.Layers {
			l.Title()
		}
		once, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		m2, err := Parse(once)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := json.Marshal(m2); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s\n%s\n%v", once, twice, err)
		}
	})
}
