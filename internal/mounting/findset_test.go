package mounting

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// setOf returns a set with some pages of the artifact's memory.
func setOf(o *Opened, page int64) *workingset.Set {
	files := WorkingSetFiles(o.Artifact)
	for i := range files {
		if files[i].Title == "memory-ranges" {
			files[i].Extents = []workingset.Extent{{Page: page, Pages: 3, Runs: 1}}
			return &workingset.Set{Runs: 1, Files: files[i : i+1]}
		}
	}
	return nil
}

// client returns a client of the place's registry.
func (p *place) client() *registry.Registry {
	p.t.Helper()
	ref, err := p.cfg.Reference(p.ref)
	if err != nil {
		p.t.Fatal(err)
	}
	reg, err := p.cfg.Registry(ref)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(reg.Close)
	return reg
}

// another pushes another artifact under another tag and opens it.
func (p *place) another(tag string, a *artifacttest.Artifact) *Opened {
	p.t.Helper()
	if err := a.Push(p.t.Context(), p.client(), "team/vm", tag); err != nil {
		p.t.Fatal(err)
	}
	return p.mustOpen(p.front.Host + "/team/vm:" + tag)
}

// noted returns the simple artifact with another manifest, and perhaps with
// a base and other memory.
func noted(note, base string, memory []byte) *artifacttest.Artifact {
	all := append([]artifacttest.File(nil), files...)
	if memory != nil {
		all[1].Data = memory
	}
	return artifacttest.Snapshot(all, artifacttest.Options{Envelope: artifacttest.Envelope, Piece: 256 << 10,
		Edit: func(m *manifest.OCIManifest, cfg *manifest.SnapshotConfig) {
			m.Annotations = map[string]string{"note": note}
			cfg.Base = base
		}})
}

func TestWorkingSet(t *testing.T) {
	t.Parallel()
	quiet := ggcr.Logger(log.New(io.Discard, "", 0))
	for name, front := range map[string]func(t *testing.T) *place{
		"with referrers": func(t *testing.T) *place {
			return newPlace(t, ggcr.New(quiet, ggcr.WithReferrersSupport(true)), simple())
		},
		"without": func(t *testing.T) *place { return newPlace(t, registrytest.NewHandler(), simple()) },
		"epoch":   func(t *testing.T) *place { return newPlace(t, &epochlike.Server{Token: "token"}, simple()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := front(t)
			o := p.mustOpen(p.ref)
			set := setOf(o, 7)
			for n := range 2 { // the newest counts
				set = setOf(o, int64(7+n))
				if _, err := PutWorkingSet(t.Context(), p.client(), "team/vm", o.Artifact, set); err != nil {
					t.Fatal(err)
				}
			}
			memory := bytes.Repeat([]byte("Memory "), 300_000)
			for by, o := range map[string]*Opened{
				ByManifest: o,
				ByContent:  p.another("again", noted("pushed again", "", nil)),
				ByBase:     p.another("child", noted("a child", o.Artifact.Digest, memory)),
				"":         p.another("other", noted("another", digests.Empty, memory)),
			} {
				found, err := o.WorkingSet(t.Context())
				if err != nil {
					t.Fatalf("by %q: %v", by, err)
				}
				p.front.Reset()
				again, err := o.WorkingSet(t.Context())
				if err != nil || !reflect.DeepEqual(again, found) || len(p.front.Requests()) != 0 {
					t.Errorf("by %q, the second time: %+v, %v, after %d requests", by, again, err, len(p.front.Requests()))
				}
				if found == nil {
					if by != "" {
						t.Errorf("no set by %s", by)
					}
					continue
				}
				if found.By != by || !reflect.DeepEqual(found.Set, set) {
					t.Errorf("%+v by %s, want %+v by %s", found.Set, found.By, set, by)
				}
				if got := Inherit(found.Set, o.Artifact.Files); len(got.Files) != 1 || !reflect.DeepEqual(got.Files[0].Extents, set.Files[0].Extents) ||
					got.Files[0].Content != o.Artifact.Files[1].Key() {
					t.Errorf("by %s: inherited %+v", by, got)
				}
			}
		})
	}
}

// TestNoWorkingSet has a "no" count for ten minutes, and the registry's
// silence for nothing.
func TestNoWorkingSet(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	p.front.Inject(&registrytest.Fault{Match: registrytest.Path("referrers"), Status: 503})
	if found, err := o.WorkingSet(t.Context()); found != nil || !errors.Is(err, registry.ErrUnreachable) {
		t.Fatalf("%v, %v", found, err)
	}
	p.front.Clear()
	for range 2 {
		if found, err := o.WorkingSet(t.Context()); found != nil || err != nil {
			t.Fatalf("%v, %v", found, err)
		}
	}
	if _, err := PutWorkingSet(t.Context(), p.client(), "team/vm", o.Artifact, setOf(o, 1)); err != nil {
		t.Fatal(err)
	}
	p.front.Reset()
	if found, err := o.WorkingSet(t.Context()); found != nil || err != nil || len(p.front.Requests()) > 0 {
		t.Fatalf("%v, %v, after %d requests", found, err, len(p.front.Requests()))
	}
	p.age(noSetFor + time.Second)
	if found, err := o.WorkingSet(t.Context()); found == nil || err != nil {
		t.Fatalf("after ten minutes: %v, %v", found, err)
	}
	p.age(365 * 24 * time.Hour)
	p.cfg.Offline = true
	if found, err := p.mustOpen(p.ref).WorkingSet(t.Context()); found == nil || err != nil {
		t.Fatalf("a year later, offline: %v, %v", found, err)
	}
}

// age makes all references in the cache older.
func (p *place) age(by time.Duration) {
	p.t.Helper()
	names, err := filepath.Glob(filepath.Join(p.cfg.CacheDir, "refs", "*.json"))
	if err != nil || len(names) == 0 {
		p.t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			p.t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(text, &doc); err != nil {
			p.t.Fatal(err)
		}
		seen, err := time.Parse(time.RFC3339Nano, doc["seen"].(string))
		if err != nil {
			p.t.Fatal(err)
		}
		doc["seen"] = seen.Add(-by)
		if text, err = json.Marshal(doc); err == nil {
			err = os.WriteFile(name, text, 0o600)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// TestHostileWorkingSets asks for sets that must not be used. Each is an error
// of one line, which is said once, and a good older one is found all the same.
func TestHostileWorkingSets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		blob, digest string // digest: of another blob
		kind         string
		size         int64
		layers       int
	}{
		"not zstd":      {blob: "not zstd"},
		"wrong digest":  {blob: "one", digest: digests.Of([]byte("another"))},
		"too large":     {blob: "x", size: 1 << 40},
		"another type":  {blob: "x", kind: "application/octet-stream"},
		"no layers":     {blob: "x", layers: -1},
		"several":       {blob: "x", layers: 2},
		"no such blob":  {digest: digests.Of([]byte("missing")), blob: ""},
		"bad reference": {digest: "sha256:../../x", blob: ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t, registrytest.NewHandler(), simple())
			o, reg := p.mustOpen(p.ref), p.client()
			good := setOf(o, 3)
			if _, err := PutWorkingSet(t.Context(), reg, "team/vm", o.Artifact, good); err != nil {
				t.Fatal(err)
			}
			if err := putMissing(t.Context(), reg, "team/vm", []byte(c.blob)); err != nil {
				t.Fatal(err)
			}
			if c.digest == "" {
				c.digest = digests.Of([]byte(c.blob))
			}
			if c.kind == "" {
				c.kind = manifest.MediaTypeWorkingSet
			}
			if c.size == 0 {
				c.size = int64(len(c.blob))
			}
			m := manifest.OCIManifest{
				SchemaVersion: 2, MediaType: manifest.MediaTypeOCIManifest, ArtifactType: manifest.ArtifactTypeWorkingSet,
				Config:      manifest.Descriptor{MediaType: manifest.ArtifactTypeWorkingSet, Digest: digests.Of([]byte("{}")), Size: 2},
				Subject:     &manifest.Descriptor{MediaType: manifest.MediaTypeOCIManifest, Digest: o.Artifact.Digest, Size: int64(len(o.Artifact.Raw))},
				Annotations: map[string]string{manifest.AnnotationCreated: "2999-01-01T00:00:00Z"},
			}
			for range c.layers + 1 {
				m.Layers = append(m.Layers, manifest.Descriptor{MediaType: c.kind, Digest: c.digest, Size: c.size})
			}
			text, err := json.Marshal(&m)
			if err != nil {
				t.Fatal(err)
			}
			err = reg.PutReferrer(t.Context(), "team/vm", "", o.Artifact.Digest, text, registry.Descriptor{
				MediaType: m.MediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations})
			if err != nil {
				t.Fatal(err)
			}
			found, err := o.WorkingSet(t.Context())
			if err != nil || found == nil || !reflect.DeepEqual(found.Set, good) {
				t.Errorf("beside a good one: %+v, %v", found, err)
			}
		})
	}
}

func TestOnlyHostileWorkingSet(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	o, reg := p.mustOpen(p.ref), p.client()
	bad := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{},"layers":[],"subject":{"digest":%q}}`,
		manifest.MediaTypeOCIManifest, manifest.ArtifactTypeWorkingSet, o.Artifact.Digest)
	if err := reg.PutReferrer(t.Context(), "team/vm", "", o.Artifact.Digest, bad, registry.Descriptor{
		MediaType: manifest.MediaTypeOCIManifest, ArtifactType: manifest.ArtifactTypeWorkingSet}); err != nil {
		t.Fatal(err)
	}
	if found, err := o.WorkingSet(t.Context()); found != nil || !errors.Is(err, workingset.ErrInvalid) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%+v, %v", found, err)
	}
	p.front.Reset()
	if found, err := o.WorkingSet(t.Context()); found != nil || err != nil || len(p.front.Requests()) > 0 {
		t.Errorf("the second time: %+v, %v", found, err)
	}
}

func TestPartialWorkingSet(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	set := setOf(o, 3)
	set.Partial = true
	p.front.Reset()
	if _, err := o.PushWorkingSet(t.Context(), set); !errors.Is(err, ErrPartial) || len(p.front.Requests()) > 0 {
		t.Errorf("%v, after %d requests", err, len(p.front.Requests()))
	}
}

func TestNamedWorkingSet(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	o := p.mustOpen(p.ref)
	if _, err := NamedWorkingSet(t.Context(), p.ref, p.cfg); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("before there is one: %v", err)
	}
	set := setOf(o, 3)
	digest, err := o.PushWorkingSet(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{p.ref, p.front.Host + "/team/vm@" + digest, p.front.Host + "/team/vm:" + contentTag(o.Artifact.Files)} {
		if found, err := NamedWorkingSet(t.Context(), name, p.cfg); err != nil || !reflect.DeepEqual(found.Set, set) {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
	}
	p.front.Reset()
	if found, err := o.WorkingSet(t.Context()); err != nil || found.Digest != digest || len(p.front.Requests()) > 0 {
		t.Errorf("who pushed it asked for it: %+v, %v", found, err)
	}
}
