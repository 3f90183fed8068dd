package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// StreamOptions configure Stream.
type StreamOptions struct {
	Name      string       // repository
	LocalName string       // name of the snapshot in the tar; "" for Name
	Writer    io.Writer    // receives the tar
	Progress  func(string) // receives a line for each file; may be nil
}

// Stream writes the snapshot of a manifest as the tar that cocoon imports,
// straight from the registry. raw may be an index. Nothing is written before
// manifest and config were validated; after that see Artifact.WriteTar.
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

// StreamParsed is Stream for a parsed manifest. It refuses an index, like
// everything that is not a snapshot.
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
