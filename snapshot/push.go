package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
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
	Progress  func(string) // a line for each file that is stored, from any goroutine; may be nil

	Snapshot    string            // the snapshot's name in cocoon where it is not Name
	Annotations map[string]string // further ones; they win over those above
	Created     time.Time         // of the artifact; zero: now
	Warn        func(string)      // what works but may trouble somebody; may be nil

	// Input is an export tar to push in place of cocoon's, maybe gzipped.
	// One that can seek (a file) is read again where that is of use, so
	// that blobs which the registry has are not sent and broken uploads
	// begin anew.
	Input io.Reader

	// Artifact is a snapshot to write in another format in place of an
	// export, and Payloads is where its files are read. They are read in
	// order, and again from some file on where an upload begins anew.
	Artifact *Artifact
	Payloads Payloads

	// Spool keeps a copy of the blob that is being sent where the Input
	// cannot seek, so that a broken upload can begin anew. Without it, it
	// ends the push. A cocoon is asked for a second export instead.
	Spool bool

	// SpoolFile makes the file that holds that copy, one blob at a time;
	// also where the Uploader is no StreamUploader. It is closed when it
	// is not needed any more. Nil: an unnamed file in SpoolDir, or in
	// os.TempDir where that is empty.
	SpoolFile func() (SpoolFile, error)
	SpoolDir  string

	// Zstd is the level, 1 to 22, with which files are compressed; 0: not
	// at all. Chunk is the size in bytes, a multiple of 1 MiB, by which
	// files are split; 0: with Zstd as small as keeps the manifest small,
	// else not at all. What makes use of either is of format v2.
	Zstd  int
	Chunk int64

	// Packed asks for the packed format. Granule is the least size of its
	// granules, a power of two from 16 KiB to 1 MiB; 0: 32 KiB. Base, if
	// not nil, is an artifact of that format whose packs are shared.
	Packed  bool
	Granule int64
	Base    *PushBase

	Memory      int64  // bytes that the push may take, 96 MiB at least; 0: 256 MiB
	Concurrency int    // chunks uploaded at a time; 0: 8
	MountFrom   string // repository of the same registry that blobs are taken over from
	DryRun      bool   // everything is read and looked for, nothing is sent

	// OnBytes gets the number of bytes of blobs that were sent, or found
	// to be there, since the last call; negative when a blob is begun
	// anew. Several goroutines may call it. May be nil.
	OnBytes func(delta int64)
}

// SpoolFile is a file that is written and read again.
type SpoolFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// PushResult is what Push made.
type PushResult struct {
	Name           string
	Tag            string
	ManifestDigest string
	ManifestBytes  []byte
	TotalSize      int64 // stored bytes of files and config
	LayerCount     int

	SentBytes  int64 // of blobs that were sent, or would be in a dry run
	ThereBytes int64 // of blobs that the registry had, or took over
	Format     string
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
	if opts.Created.IsZero() {
		opts.Created = time.Now()
	}
	if err := opts.checkFormat(); err != nil {
		return nil, err
	}
	src, err := p.source(&opts)
	if err != nil {
		return nil, err
	}
	defer src.spool.close()
	if err := src.start(ctx); err != nil {
		return nil, err
	}
	u := &push{
		up: p.Uploader, opts: &opts, src: src, blobs: newBlobSet(),
		plan: newPiecePlan(src.export.sizes), chunks: newChunkPlan(opts.Chunk, src.export.sizes),
	}
	readErr := u.files(ctx)
	// What ends a cocoon that is still writing is this, and not its fault.
	waitErr := src.done()
	if readErr != nil && (waitErr == nil || !isInput(readErr) || !src.ended()) {
		return nil, readErr
	}
	if waitErr != nil {
		return nil, waitErr
	}
	return u.finish(ctx)
}

// source finds what is pushed: a cocoon, which can export again, or an
// input, which can be read again where it can seek.
func (p *Pusher) source(opts *PushOptions) (*source, error) {
	if opts.Artifact != nil {
		return opts.fromArtifact(), nil
	}
	nothing := func() error { return nil }
	if opts.Input == nil {
		if p.Cocoon == nil {
			return nil, errors.New("snapshot push: neither a cocoon nor an input")
		}
		return &source{open: p.export(opts.Snapshot), again: true}, nil
	}
	s := &source{}
	seeker, ok := opts.Input.(io.Seeker)
	var start int64
	if ok {
		var err error
		start, err = seeker.Seek(0, io.SeekCurrent)
		s.again = err == nil
	}
	begun := false
	s.open = func(context.Context) (*exportReader, func() error, error) {
		if begun {
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return nil, nil, err
			}
		}
		begun = true
		export, err := openExport(opts.Input, opts.exportWindow())
		return export, nothing, err
	}
	var err error
	if opts.Spool && !s.again {
		s.spool, err = opts.newSpool()
	}
	return s, err
}

// export starts a cocoon. The function it returns ends it and says how it
// went.
func (p *Pusher) export(name string) func(ctx context.Context) (*exportReader, func() error, error) {
	return func(ctx context.Context) (*exportReader, func() error, error) {
		stream, wait, err := p.Cocoon.Export(ctx, name)
		if err != nil {
			return nil, nil, fmt.Errorf("cocoon export %s: %w", name, err)
		}
		done := func() error {
			stream.Close()
			return wait()
		}
		return newExportReader(stream), done, nil
	}
}

// push is one push under way.
type push struct {
	up     Uploader
	opts   *PushOptions
	src    *source
	plan   *piecePlan
	chunks *chunkPlan
	packer *packer // nil for other formats
	blobs  *blobSet
	stored []*storedFile

	telling sync.Mutex // held while Progress is called
}

// storedFile is a file that is in the registry, or on its way there: its
// layers, and what the config blob says of it.
type storedFile struct {
	name    string
	size    int64 // of the payload
	layers  []manifest.Descriptor
	meta    manifest.SnapshotFile
	hashes  *blobHasher // nil where it is encoded or split
	split   bool        // into layers that are chunks
	encoded bool
	left    atomic.Int64 // layers on their way, of a file that is split or encoded
}

// failed says which file an upload that failed was of.
func (f *storedFile) failed(err error) error { return fmt.Errorf("upload %s: %w", f.name, err) }

// files uploads every file of the export.
func (u *push) files(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return u.read(ctx, g) })
	return g.Wait()
}

// progress tells that a file is in the registry.
func (u *push) progress(f *storedFile) {
	if u.opts.Progress == nil {
		return
	}
	line := fmt.Sprintf("  %s -> %s (%d bytes)", f.name, f.layers[0].Digest, f.layers[0].Size)
	if f.split {
		line = fmt.Sprintf("  %s -> %d chunks (%d bytes)", f.name, len(f.layers), f.stored())
	}
	u.telling.Lock()
	defer u.telling.Unlock()
	u.opts.Progress(line)
}

// stored is what the file's layers take in the registry.
func (f *storedFile) stored() (n int64) {
	for i := range f.layers {
		n += f.layers[i].Size
	}
	return n
}

// read goes through the export and has each file stored; g waits until
// all of them are.
func (u *push) read(ctx context.Context, g *errgroup.Group) error {
	c, err := newChunker(ctx, g, u)
	if err != nil {
		return err
	}
	defer c.close()
	if u.opts.Packed {
		if err := u.startPacker(ctx, g); err != nil {
			return err
		}
		defer u.packer.stop()
	}
	places := make(chan struct{}, filesAtATime)
	for {
		e, err := u.src.next()
		if err == io.EOF {
			if err = u.src.export.complete(); err == nil && u.packer != nil {
				err = u.packer.settle(ctx)
			}
			return err
		}
		if err != nil {
			return err
		}
		f := &storedFile{name: e.name, size: e.size, meta: manifest.SnapshotFile{
			Mode: e.mode, SparseMap: e.mapText, SparseSize: e.sparseSize, Records: e.records,
		}}
		u.stored = append(u.stored, f)
		if err := u.one(ctx, g, c, places, f, e); err != nil {
			return err
		}
	}
}

// filesAtATime is how many files of a tar that can seek are sent at a
// time as they are.
const filesAtATime = 2

// one has a file stored in the form that the options and its size ask
// for.
func (u *push) one(ctx context.Context, g *errgroup.Group, c *chunker, places chan struct{}, f *storedFile, e *exportEntry) error {
	env := &u.src.export.envelope.Config
	if u.packer != nil && e.size >= minEncoded {
		return u.packer.store(f, e)
	}
	var levels []int64 // a packed artifact has no digests of pieces
	if u.packer == nil {
		levels = u.plan.levels(e.name, e.size, env)
	}
	if u.opts.v2() {
		chunk, err := u.chunks.next(e.name, e.size, env)
		if err != nil {
			return err
		}
		if e.size >= minEncoded && (u.opts.Zstd > 0 || e.size > chunk) {
			return c.store(f, e, chunk)
		}
	}
	if e.again == nil {
		if err := u.store(ctx, f, e, levels); err != nil {
			return f.failed(err)
		}
		return nil
	}
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	g.Go(func() error {
		defer func() { <-places }()
		if err := u.store(ctx, f, e, levels); err != nil {
			return f.failed(err)
		}
		return nil
	})
	return nil
}

// finish uploads config and manifest.
func (u *push) finish(ctx context.Context) (*PushResult, error) {
	if u.packer != nil {
		if err := u.packer.writeIndexes(ctx); err != nil {
			return nil, fmt.Errorf("upload index: %w", err)
		}
	}
	cfg, err := u.config(ctx)
	if err != nil {
		return nil, fmt.Errorf("upload snapshot config: %w", err)
	}
	raw, err := u.manifest(cfg)
	if err != nil {
		return nil, fmt.Errorf("build manifest: %w", err)
	}
	if !u.opts.DryRun {
		if err := u.up.PutManifest(ctx, u.opts.Name, u.opts.Tag, raw, manifest.MediaTypeOCIManifest); err != nil {
			return nil, fmt.Errorf("put manifest %s:%s: %w", u.opts.Name, u.opts.Tag, err)
		}
	}
	res := &PushResult{
		Name: u.opts.Name, Tag: u.opts.Tag,
		ManifestDigest: digests.Of(raw), ManifestBytes: raw, TotalSize: cfg.Size,
		SentBytes: u.blobs.sent, ThereBytes: u.blobs.there, Format: u.format(),
	}
	for _, f := range u.stored {
		res.TotalSize += f.stored()
		res.LayerCount += len(f.layers)
	}
	if u.packer != nil {
		for _, d := range u.packer.layers() {
			res.TotalSize += d.Size
			res.LayerCount++
		}
	}
	return res, nil
}

// format is v2 where a file makes use of it.
func (u *push) format() string {
	if u.packer != nil {
		return schemaPacked
	}
	for _, f := range u.stored {
		if f.split || f.encoded {
			return "v2"
		}
	}
	return "v1"
}

func (u *push) warn(format string, args ...any) {
	if u.opts.Warn != nil {
		u.opts.Warn(fmt.Sprintf(format, args...))
	}
}
