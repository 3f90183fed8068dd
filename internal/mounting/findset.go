package mounting

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// FoundSet is a working set that a registry has for an artifact.
type FoundSet struct {
	Set    *workingset.Set
	Digest string // of the set's manifest
	By     string // how it was found: one of the By constants
}

// How a working set was found.
const (
	ByManifest = "manifest" // it refers to the artifact
	ByContent  = "content"  // it was made for an artifact with the same memory
	ByBase     = "base"     // it refers to the artifact's base
	ByName     = "name"     // the user has named it

	ByRecording = "recording" // it was recorded on this machine
)

// setLookup bounds how long a registry is asked for a working set.
const setLookup = time.Minute

// SetRegistry is a registry that is asked for working sets.
type SetRegistry interface {
	Referrers(ctx context.Context, name, subject, artifactType string) (list []registry.Descriptor, api bool, err error)
	GetManifest(ctx context.Context, name, tag string) ([]byte, string, error)
	GetBlob(ctx context.Context, name, digest string) (io.ReadCloser, error)
}

// setFinder looks for working sets in one repository.
type setFinder struct {
	reg  SetRegistry
	name string // of the repository
	api  bool   // the registry has the referrers API
}

// FindWorkingSet asks a registry for the newest working set of an artifact:
// by its manifest, by the content of its memory, by its base. It returns nil
// if there is none. api reports whether the registry has the referrers API.
// If a set was there but cannot be used, the error wraps
// workingset.ErrInvalid or layout.ErrContent.
func FindWorkingSet(ctx context.Context, reg SetRegistry, repository string, a *snapshot.Artifact) (found *FoundSet, api bool, err error) {
	f := &setFinder{reg: reg, name: repository}
	found, err = f.find(ctx, a)
	return found, f.api, err
}

func (f *setFinder) find(ctx context.Context, a *snapshot.Artifact) (*FoundSet, error) {
	found, err := f.referring(ctx, a.Digest, ByManifest)
	if found != nil || unanswered(err) {
		return found, err
	}
	var later error
	if tag := contentTag(a.Files); tag != "" {
		if found, later = f.tagged(ctx, tag, ByContent); found != nil || unanswered(later) {
			return found, later
		}
		err = cmp.Or(err, later)
	}
	if base := baseOf(a); base != "" {
		if found, later = f.referring(ctx, base, ByBase); found != nil {
			return found, nil
		}
		err = cmp.Or(err, later)
	}
	return nil, err
}

// unanswered reports whether an error means that nothing is known yet.
func unanswered(err error) bool {
	for _, answer := range []error{workingset.ErrInvalid, layout.ErrContent, registry.ErrContent, registry.ErrNotFound} {
		if errors.Is(err, answer) {
			return false
		}
	}
	return err != nil
}

// baseOf returns the digest of the artifact's base, or "".
func baseOf(a *snapshot.Artifact) string {
	if a.Config == nil || !digests.Valid(a.Config.Base) {
		return ""
	}
	return a.Config.Base
}

// contentTag returns the tag of the working sets of artifacts with the same
// memory, or "" without memory.
func contentTag(files []*layout.File) string {
	for _, f := range files {
		if manifest.IsMemory(f.Name, f.MediaType) {
			return "workingset-" + f.Key()
		}
	}
	return ""
}

// mostSets bounds how many sets of one subject are tried.
const mostSets = 3

// referring returns the newest set that refers to a manifest.
func (f *setFinder) referring(ctx context.Context, subject, by string) (*FoundSet, error) {
	list, api, err := f.reg.Referrers(ctx, f.name, subject, manifest.ArtifactTypeWorkingSet)
	f.api = f.api || api
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b registry.Descriptor) int {
		return cmp.Compare(b.Annotations[manifest.AnnotationCreated], a.Annotations[manifest.AnnotationCreated])
	})
	for _, d := range list[:min(len(list), mostSets)] {
		found, later := f.tagged(ctx, d.Digest, by)
		if found != nil || unanswered(later) {
			return found, later
		}
		err = cmp.Or(err, later)
	}
	return nil, err
}

// tagged returns the set whose manifest has a tag or digest, or nil.
func (f *setFinder) tagged(ctx context.Context, tag, by string) (*FoundSet, error) {
	raw, _, err := f.reg.GetManifest(ctx, f.name, tag)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return f.fetch(ctx, raw, by)
}

// fetch returns the set of a manifest.
func (f *setFinder) fetch(ctx context.Context, raw []byte, by string) (*FoundSet, error) {
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", workingset.ErrInvalid, err)
	}
	if !isWorkingSet(m) || len(m.Layers) != 1 || m.Layers[0].MediaType != manifest.MediaTypeWorkingSet {
		return nil, fmt.Errorf("%w: manifest %s", workingset.ErrInvalid, digests.Of(raw))
	}
	d := m.Layers[0]
	if d.Size > workingset.MaxEncoded {
		return nil, fmt.Errorf("%w: a blob of %d bytes", workingset.ErrInvalid, d.Size)
	}
	body, err := f.reg.GetBlob(ctx, f.name, d.Digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, workingset.MaxEncoded+1))
	if err != nil {
		return nil, err
	}
	if digests.Of(data) != d.Digest {
		return nil, fmt.Errorf("working set %s has another digest: %w", d.Digest, layout.ErrContent)
	}
	set, err := workingset.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("working set %s: %w", d.Digest, err)
	}
	return &FoundSet{Set: set, Digest: digests.Of(raw), By: by}, nil
}

func isWorkingSet(m *manifest.OCIManifest) bool {
	return m.ArtifactType == manifest.ArtifactTypeWorkingSet || m.ArtifactType == "" && m.Config.MediaType == manifest.ArtifactTypeWorkingSet
}

// noSetFor is how long an artifact is taken to have no working set after a
// registry has said so.
const noSetFor = 10 * time.Minute

// keptSet is an answer in the cache.
type keptSet struct {
	Digest string `json:"digest"` // of the set's manifest
	By     string `json:"by"`
	Set    []byte `json:"set"` // as workingset.Encode writes it
}

// WorkingSet returns the artifact's working set, or nil: from the cache, which
// keeps what a registry has answered, or else from the registry. It may take
// as long as setLookup.
func (o *Opened) WorkingSet(ctx context.Context) (*FoundSet, error) {
	if o.Cache == nil {
		found, _, err := FindWorkingSet(ctx, o.Registry, o.Reference.Repository, o.Artifact)
		return found, err
	}
	key := setKey(o.Reference)
	found, answered := o.keptSet(key)
	if answered || o.cfg.Offline {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, setLookup)
	defer cancel()
	found, _, err := FindWorkingSet(ctx, o.Registry, o.Reference.Repository, o.Artifact)
	if unanswered(err) {
		return nil, fmt.Errorf("ask for the working set: %w", err)
	}
	o.keepSet(key, found)
	return found, err
}

// setKey names the answer about an artifact in the cache, which keeps it as
// long as the artifact: that is what the name begins with.
func setKey(ref registry.Reference) string { return ref.String() + " working-set" }

// keptSet returns the answer in the cache, and whether there is one.
func (o *Opened) keptSet(key string) (found *FoundSet, answered bool) {
	digest, seen, err := o.Cache.Ref(key)
	if err != nil {
		return nil, false
	}
	if digest == digests.Empty {
		return nil, time.Since(seen).Abs() < noSetFor // a clock may be set back
	}
	text, err := o.Cache.Blob(digest)
	if err != nil {
		return nil, false
	}
	var k keptSet
	if json.Unmarshal(text, &k) != nil {
		return nil, false
	}
	set, err := workingset.Decode(k.Set)
	if err != nil {
		return nil, false
	}
	return &FoundSet{Set: set, Digest: k.Digest, By: k.By}, true
}

// keepSet puts an answer into the cache. A cache that takes nothing costs a
// request with the next mount.
func (o *Opened) keepSet(key string, found *FoundSet) {
	digest := digests.Empty
	if found != nil {
		data, err := workingset.Encode(found.Set)
		if err != nil {
			return
		}
		text, err := json.Marshal(keptSet{Digest: found.Digest, By: found.By, Set: data})
		if err != nil {
			return
		}
		digest = digests.Of(text)
		if err := o.Cache.PutBlob(digest, text); err != nil {
			return
		}
	}
	_ = o.Cache.PutRef(key, digest)
}

// NamedWorkingSet returns the working set that a reference names: a set, or
// the set of the artifact that it names.
func NamedWorkingSet(ctx context.Context, reference string, cfg Config) (*FoundSet, error) {
	ref, err := cfg.Reference(reference)
	if err != nil {
		return nil, err
	}
	reg, err := cfg.mirrors(ref)
	if err != nil {
		return nil, err
	}
	defer reg.Close()
	ctx, cancel := context.WithTimeout(ctx, setLookup)
	defer cancel()
	f := &setFinder{reg: reg, name: ref.Repository}
	raw, _, err := reg.GetManifest(ctx, ref.Repository, ref.Identifier())
	if err != nil {
		return nil, err
	}
	if m, err := manifest.Parse(raw); err == nil && isWorkingSet(m) {
		return f.fetch(ctx, raw, ByName)
	}
	a, err := snapshot.Load(ctx, given{reg, raw}, ref.Repository, digests.Of(raw), snapshot.LoadOptions{Platform: cfg.Platform})
	if err != nil {
		return nil, err
	}
	found, err := f.find(ctx, a)
	if err == nil && found == nil {
		err = fmt.Errorf("%s has no working set: %w", ref, registry.ErrNotFound)
	}
	return found, err
}

// given is a registry one of whose manifests was read before.
type given struct {
	*registry.Mirrors
	raw []byte
}

// GetManifest is that of snapshot.Downloader.
func (g given) GetManifest(ctx context.Context, name, tag string) ([]byte, string, error) {
	if tag == digests.Of(g.raw) {
		return bytes.Clone(g.raw), "", nil
	}
	return g.Mirrors.GetManifest(ctx, name, tag)
}
