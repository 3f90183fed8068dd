package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// Artifact is a parsed and validated snapshot or cloud image. It is
// immutable.
type Artifact struct {
	Kind     manifest.Kind
	Manifest *manifest.OCIManifest
	Raw      []byte                   // the manifest's bytes in the registry
	Digest   string                   // of Raw
	Config   *manifest.SnapshotConfig // nil for a cloud image
	Envelope []byte                   // snapshot.json as a mount shows it; nil for a cloud image
	Files    []*layout.File           // in the manifest's order
	Created  time.Time                // zero if the artifact does not contain it
	Platform string                   // of the chosen child of an index; "" if the reference named a manifest
	Index    string                   // digest of that index, or ""
}

// LoadOptions configure Load.
type LoadOptions struct {
	// Platform selects the child of an index, as os/arch[/variant]. It must
	// exist. "" selects linux/amd64, else the first known one.
	Platform string
}

// Load fetches and validates the manifest that a reference names and, for a
// snapshot, the config blob. It fetches no file contents, except sometimes
// the first bytes of a compressed chunk. An error about invalid contents
// wraps layout.ErrContent; one about an artifact that is neither snapshot
// nor cloud image wraps ErrKind. Errors of dl are returned as they are.
func Load(ctx context.Context, dl Downloader, name, tagOrDigest string, opts LoadOptions) (*Artifact, error) {
	if name == "" {
		return nil, errors.New("snapshot load: name is required")
	}
	raw, err := getManifest(ctx, dl, name, tagOrDigest)
	if err != nil {
		return nil, err
	}
	a, err := openManifest(ctx, dl, name, raw, opts)
	if err != nil {
		return nil, err
	}
	switch a.Kind {
	case manifest.KindSnapshot:
		err = a.loadSnapshot(ctx, dl, name)
	case manifest.KindCloudImage:
		err = a.loadCloudImage()
	default:
		err = &kindError{a.Kind}
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// getManifest fetches a manifest, and verifies it if ref is a digest.
func getManifest(ctx context.Context, dl Downloader, name, ref string) ([]byte, error) {
	sep := ":"
	if digests.HasPrefix(ref) {
		sep = "@"
	}
	raw, _, err := dl.GetManifest(ctx, name, ref)
	if err != nil {
		what := fmt.Sprintf("get manifest %s%s%s", name, sep, ref)
		if strings.HasPrefix(err.Error(), what) { // not to say it twice
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(raw) > MaxManifest {
		return nil, wrong("manifest %s%s%s has %d bytes, at most %d are read", name, sep, ref, len(raw), MaxManifest)
	}
	if got := digests.Of(raw); digests.HasPrefix(ref) && got != ref {
		return nil, wrong("manifest %s@%s has digest %s", name, ref, got)
	}
	return raw, nil
}

// openManifest parses raw. If it is an index, openManifest fetches one of
// its children.
func openManifest(ctx context.Context, dl Downloader, name string, raw []byte, opts LoadOptions) (*Artifact, error) {
	if len(raw) > MaxManifest {
		return nil, wrong("manifest has %d bytes, at most %d are read", len(raw), MaxManifest)
	}
	m, err := manifest.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w: %w", layout.ErrContent, err)
	}
	a := &Artifact{Kind: manifest.ClassifyParsed(m), Manifest: m, Raw: raw, Digest: digests.Of(raw)}
	if a.Kind != manifest.KindImageIndex {
		return a, nil
	}
	child, err := pickChild(m.Manifests, opts.Platform)
	if err != nil {
		return nil, err
	}
	if err := checkDigest(child.Digest); err != nil {
		return nil, err
	}
	raw, err = getManifest(ctx, dl, name, child.Digest)
	if err != nil {
		return nil, fmt.Errorf("child of index: %w", err)
	}
	if m, err = manifest.Parse(raw); err != nil {
		return nil, fmt.Errorf("parse child manifest: %w: %w", layout.ErrContent, err)
	}
	kind := manifest.ClassifyParsed(m)
	if kind == manifest.KindImageIndex {
		return nil, fmt.Errorf("child %s of an index: %w", child.Digest, &kindError{kind})
	}
	return &Artifact{
		Kind: kind, Manifest: m, Raw: raw, Digest: child.Digest,
		Platform: platformName(child.Platform), Index: a.Digest,
	}, nil
}

// pickChild returns the child for the wanted platform; if want is "", the
// one for linux/amd64, else the first whose platform is known. That of an
// attestation is not.
func pickChild(children []manifest.IndexManifest, want string) (*manifest.IndexManifest, error) {
	var first *manifest.IndexManifest
	for i := range children {
		c := &children[i]
		name := platformName(c.Platform)
		if want != "" {
			if name == want || strings.HasPrefix(name, want+"/") {
				return c, nil
			}
			continue
		}
		if c.Platform != nil && c.Platform.OS == "linux" && c.Platform.Architecture == "amd64" {
			return c, nil
		}
		if first == nil && (c.Platform == nil || c.Platform.Architecture != "unknown") {
			first = c
		}
	}
	switch {
	case want != "":
		return nil, fmt.Errorf("the image index has nothing for platform %q", want)
	case first == nil:
		return nil, wrong("the image index has no child for any known platform")
	}
	return first, nil
}

// platformName returns os/arch[/variant]. It comes from the registry, so it
// is quoted unless it is plain text.
func platformName(p *manifest.Platform) string {
	if p == nil {
		return "unspecified"
	}
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	if printable(name) {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// loadSnapshot fetches the config blob and makes files of the layers.
func (a *Artifact) loadSnapshot(ctx context.Context, dl Downloader, name string) error {
	cfg, err := FetchSnapshotConfig(ctx, dl, name, a.Manifest.Config)
	if err != nil {
		return fmt.Errorf("fetch snapshot config: %w", err)
	}
	a.Config = cfg
	a.Created = created(a.Manifest, cfg.CreatedAt)
	if a.Files, err = snapshotFiles(ctx, dl, name, a.Manifest, cfg); err != nil {
		return err
	}
	a.Envelope, err = envelopeOf(cfg, name, a.names())
	return err
}

// names returns the names of the artifact's files, in their order.
func (a *Artifact) names() []string {
	names := make([]string, len(a.Files))
	for i, f := range a.Files {
		names[i] = f.Name
	}
	return names
}

// created returns the artifact's creation time, from the config or else the
// annotation.
func created(m *manifest.OCIManifest, t time.Time) time.Time {
	if !t.IsZero() {
		return t
	}
	t, err := time.Parse(time.RFC3339, m.Annotations[manifest.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}
