package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// StreamOptions configures Stream.
type StreamOptions struct {
	Name      string       // repository
	LocalName string       // name the tar gives the snapshot; empty: Name
	Writer    io.Writer    // takes the tar
	Progress  func(string) // a line for each file; may be nil
}

// Stream writes the snapshot that a manifest stands for as the tar that
// cocoon imports, straight from the registry. raw may be an index too.
// Nothing is written before manifest and config were found right; after
// that see Artifact.WriteTar.
func Stream(ctx context.Context, raw []byte, dl Downloader, opts StreamOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	a, err := openManifest(ctx, dl, opts.Name, raw, LoadOptions{})
	if err != nil {
		return err
	}
	if a.Platform != "" && opts.Progress != nil {
		opts.Progress(fmt.Sprintf("  index: taking %s (%s)", a.Platform, a.Digest))
	}
	return StreamParsed(ctx, a.Manifest, dl, opts)
}

// StreamParsed is Stream for a manifest that was parsed already. An index
// is refused like all else that is no snapshot.
func StreamParsed(ctx context.Context, m *manifest.OCIManifest, dl Downloader, opts StreamOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	kind := manifest.ClassifyParsed(m)
	if kind != manifest.KindSnapshot {
		return &kindError{kind}
	}
	a := &Artifact{Kind: kind, Manifest: m}
	if err := a.loadSnapshot(ctx, dl, opts.Name); err != nil {
		return err
	}
	localName := opts.LocalName
	if localName == "" {
		localName = opts.Name
	}
	return a.WriteTar(ctx, opts.Writer, DownloaderPayloads(dl, opts.Name), TarOptions{
		LocalName: localName, Progress: opts.Progress,
	})
}

func (o *StreamOptions) check() error {
	if o.Name == "" {
		return errors.New("snapshot stream: name is required")
	}
	if o.Writer == nil {
		return errors.New("snapshot stream: writer is required")
	}
	return nil
}
