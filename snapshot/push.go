package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// smallConfig is what epoch v0.1.8 reads of a config blob, in bytes.
const smallConfig = 1 << 20

// Pusher makes artifacts of snapshots and uploads them.
type Pusher struct {
	Uploader Uploader
	Cocoon   CocoonRunner // may be nil when PushOptions.Input is set
}

// PushOptions configures Push.
type PushOptions struct {
	Name      string       // repository, and the snapshot's name in cocoon
	Tag       string       // empty: latest
	BaseImage string       // annotation cocoonstack.snapshot.baseimage, where set
	Source    string       // annotation org.opencontainers.image.source, where set
	Revision  string       // annotation org.opencontainers.image.revision, where set
	Progress  func(string) // a line for each file; may be nil

	Snapshot    string            // the snapshot's name in cocoon where it is not Name
	Annotations map[string]string // further ones; they win over those above
	Warn        func(string)      // what works but may trouble somebody; may be nil

	// Input is an export tar to push in place of cocoon's, maybe gzipped.
	// One that can seek (a file) is read twice, so that blobs which the
	// registry has are not sent and broken uploads begin anew.
	Input io.Reader

	// SpoolDir holds one blob at a time, unnamed, when neither the input
	// can seek nor the Uploader is a StreamUploader. Empty: os.TempDir.
	SpoolDir string

	// OnBytes gets the number of bytes of files sent since the last call,
	// negative when a blob is begun anew; may be nil.
	OnBytes func(delta int64)
}

// PushResult is what Push made.
type PushResult struct {
	Name           string
	Tag            string
	ManifestDigest string
	ManifestBytes  []byte
	TotalSize      int64 // stored bytes of files and config
	LayerCount     int
}

// Push exports a snapshot from cocoon, or takes the tar in opts.Input,
// and uploads it: files first, as they come, then the config, then the
// manifest. An export that no reader could make a snapshot of again is
// refused with layout.ErrContent.
func (p *Pusher) Push(ctx context.Context, opts PushOptions) (*PushResult, error) {
	if opts.Name == "" {
		return nil, errors.New("snapshot push: name is required")
	}
	if opts.Tag == "" {
		opts.Tag = defaultTag
	}
	if opts.Snapshot == "" {
		opts.Snapshot = opts.Name
	}
	export, done, err := p.open(ctx, &opts)
	if err != nil {
		return nil, err
	}
	u := &push{up: p.Uploader, opts: &opts, export: export, plan: newPiecePlan(export.sizes)}
	readErr := u.files(ctx)
	// Closing first lets a cocoon end that is still writing.
	waitErr := done()
	if readErr != nil && (waitErr == nil || !isInput(readErr)) {
		return nil, readErr
	}
	if waitErr != nil {
		return nil, waitErr
	}
	return u.finish(ctx)
}

// open starts the export. done ends it and says how it went.
func (p *Pusher) open(ctx context.Context, opts *PushOptions) (*exportReader, func() error, error) {
	nothing := func() error { return nil }
	if opts.Input != nil {
		export, err := openExport(opts.Input)
		return export, nothing, err
	}
	if p.Cocoon == nil {
		return nil, nil, errors.New("snapshot push: neither a cocoon nor an input")
	}
	stream, wait, err := p.Cocoon.Export(ctx, opts.Snapshot)
	if err != nil {
		return nil, nil, fmt.Errorf("cocoon export %s: %w", opts.Snapshot, err)
	}
	done := func() error {
		stream.Close()
		return wait()
	}
	return newExportReader(stream), done, nil
}

// push is one push under way.
type push struct {
	up     Uploader
	opts   *PushOptions
	export *exportReader
	plan   *piecePlan
	stored []*storedFile
}

// storedFile is a file that is in the registry: its layers, and what the
// config blob says of it.
type storedFile struct {
	name   string
	layers []manifest.Descriptor
	meta   manifest.SnapshotFile
	hashes *blobHasher
}

// files uploads every file of the export.
func (u *push) files(ctx context.Context) error {
	for {
		e, err := u.export.next()
		if err == io.EOF {
			return u.export.complete()
		}
		if err != nil {
			return err
		}
		f, err := u.store(ctx, e)
		if err != nil {
			return fmt.Errorf("upload %s: %w", e.name, err)
		}
		u.stored = append(u.stored, f)
		if u.opts.Progress != nil {
			u.opts.Progress(fmt.Sprintf("  %s -> %s (%d bytes)", e.name, f.layers[0].Digest, f.layers[0].Size))
		}
	}
}

// finish uploads config and manifest.
func (u *push) finish(ctx context.Context) (*PushResult, error) {
	cfg, err := u.config(ctx)
	if err != nil {
		return nil, fmt.Errorf("upload snapshot config: %w", err)
	}
	raw, err := u.manifest(cfg)
	if err != nil {
		return nil, fmt.Errorf("build manifest: %w", err)
	}
	if err := u.up.PutManifest(ctx, u.opts.Name, u.opts.Tag, raw, manifest.MediaTypeOCIManifest); err != nil {
		return nil, fmt.Errorf("put manifest %s:%s: %w", u.opts.Name, u.opts.Tag, err)
	}
	res := &PushResult{
		Name: u.opts.Name, Tag: u.opts.Tag,
		ManifestDigest: digest.FromBytes(raw).String(), ManifestBytes: raw, TotalSize: cfg.Size,
	}
	for _, f := range u.stored {
		for _, l := range f.layers {
			res.TotalSize += l.Size
			res.LayerCount++
		}
	}
	return res, nil
}

func (u *push) warn(format string, args ...any) {
	if u.opts.Warn != nil {
		u.opts.Warn(fmt.Sprintf(format, args...))
	}
}
