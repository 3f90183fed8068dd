package mounting

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/internal/workingset"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// annotationRuns is the number of recordings in a set, for people.
const annotationRuns = "dev.epochfs.workingset.runs"

// ErrPartial is wrapped by the error for a working set that is not pushed
// because its recording was cut short.
var ErrPartial = errors.New("the recording was cut short")

// WorkingSetFiles returns the artifact's files as those of a working set,
// without extents, in the order of its files.
func WorkingSetFiles(a *snapshot.Artifact) []workingset.File {
	var all []workingset.File
	for _, f := range a.Files {
		all = append(all, workingset.File{Title: f.Name, Content: f.Key(), Size: f.Size()})
	}
	return all
}

// Inherit returns the parts of a set that concern an artifact's files, as a
// set of that artifact. It finds files by content, then by title.
func Inherit(set *workingset.Set, files []*layout.File) *workingset.Set {
	out := &workingset.Set{Runs: set.Runs, Partial: set.Partial}
	for _, f := range files {
		if had := set.For(f.Name, f.Key(), f.Size()); had != nil {
			out.Files = append(out.Files, *had)
		}
	}
	return out
}

// PutWorkingSet uploads a working set of an artifact and returns the digest
// of the set's manifest. The artifact's registry lists it as a referrer of the
// artifact, and a tag names it by the content of the artifact's memory.
func PutWorkingSet(ctx context.Context, reg *registry.Registry, repository string, a *snapshot.Artifact, set *workingset.Set) (string, error) {
	if set.Partial {
		return "", ErrPartial
	}
	data, err := workingset.Encode(set)
	if err != nil {
		return "", err
	}
	config := []byte("{}")
	for _, blob := range [][]byte{config, data} {
		if err := putMissing(ctx, reg, repository, blob); err != nil {
			return "", err
		}
	}
	m := manifest.OCIManifest{
		SchemaVersion: 2,
		MediaType:     manifest.MediaTypeOCIManifest,
		ArtifactType:  manifest.ArtifactTypeWorkingSet,
		Config:        manifest.Descriptor{MediaType: manifest.ArtifactTypeWorkingSet, Digest: digests.Of(config), Size: int64(len(config))},
		Layers:        []manifest.Descriptor{{MediaType: manifest.MediaTypeWorkingSet, Digest: digests.Of(data), Size: int64(len(data))}},
		Subject:       &manifest.Descriptor{MediaType: manifest.MediaTypeOCIManifest, Digest: a.Digest, Size: int64(len(a.Raw))},
		Annotations: map[string]string{
			manifest.AnnotationCreated: time.Now().UTC().Format(time.RFC3339Nano),
			annotationRuns:             strconv.Itoa(set.Runs),
		},
	}
	if kind := a.Manifest.MediaType; kind != "" {
		m.Subject.MediaType = kind
	}
	text, err := json.MarshalIndent(&m, "", "  ")
	if err != nil {
		return "", err
	}
	err = reg.PutReferrer(ctx, repository, contentTag(a.Files), a.Digest, text, registry.Descriptor{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	})
	if err != nil {
		return "", fmt.Errorf("upload working set: %w", err)
	}
	return digests.Of(text), nil
}

func putMissing(ctx context.Context, reg *registry.Registry, repository string, blob []byte) error {
	digest := digests.Of(blob)
	there, err := reg.BlobExists(ctx, repository, digest)
	if err != nil || there {
		return err
	}
	return reg.PutBlob(ctx, repository, digest, bytes.NewReader(blob), int64(len(blob)))
}

// PushWorkingSet is PutWorkingSet for the open artifact. The cache's answer is
// the new set from then on.
func (o *Opened) PushWorkingSet(ctx context.Context, set *workingset.Set) (string, error) {
	reg, err := o.cfg.Registry(o.Reference)
	if err != nil {
		return "", err
	}
	defer reg.Close()
	digest, err := PutWorkingSet(ctx, reg, o.Reference.Repository, o.Artifact, set)
	if err == nil && o.Cache != nil {
		o.keepSet(setKey(o.Reference), &FoundSet{Set: set, Digest: digest, By: ByManifest})
	}
	return digest, err
}

// KeepWorkingSet makes a set that was recorded here the cache's answer about
// the artifact.
func (o *Opened) KeepWorkingSet(set *workingset.Set) {
	o.keepSet(setKey(o.Reference), &FoundSet{Set: set, By: ByRecording})
}
