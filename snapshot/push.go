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

// smallConfig is the largest config blob that epoch v0.1.8 reads, in bytes.
const smallConfig = 1 << 20

// Pusher makes artifacts of snapshots and uploads them.
type Pusher struct {
	Uploader Uploader
	Cocoon   CocoonRunner // may be nil if PushOptions.Input is set
}

// PushOptions configure Push.
type PushOptions struct {
	Name      string       // repository, and the snapshot's name in cocoon
	Tag       string       // "" for latest
	BaseImage string       // annotation cocoonstack.snapshot.baseimage, unless ""
	Source    string       // annotation org.opencontainers.image.source, unless ""
	Revision  string       // annotation org.opencontainers.image.revision, unless ""
	Progress  func(string) // receives a line for each stored file, from any goroutine; may be nil

	Snapshot    string            // the snapshot's name in cocoon, if it is not Name
	Annotations map[string]string // more annotations; they override those above
	Created     time.Time         // creation time of the artifact; zero for now
	Warn        func(string)      // receives warnings; may be nil

	// Input is an export tar to push instead of cocoon's, possibly
	// compressed. If it can seek, as a file can, it is read again if needed,
	// so that Push does not send blobs that the registry has, and can
	// restart broken uploads.
	Input io.Reader

	// Artifact is a snapshot to write in another format instead of an
	// export, and Payloads reads its files. They are read in order, and
	// again from some file on if an upload starts over.
	Artifact *Artifact
	Payloads Payloads

	// Spool keeps a copy of the blob that is being sent if Input cannot
	// seek, so that a broken upload can start over. Without the copy it ends
	// the push. Cocoon is asked for a second export instead.
	Spool bool

	// SpoolFile makes the file for that copy, one blob at a time; it is also
	// used if the Uploader is no StreamUploader. The file is closed when it
	// is no longer needed. Nil means an unnamed file in SpoolDir, or in
	// os.TempDir if that is "".
	SpoolFile func() (SpoolFile, error)
	SpoolDir  string

	// Zstd is the compression level of files, 1 to 22; 0 for no compression.
	// Chunk is the size of the chunks that files are split into, in bytes, a
	// multiple of 1 MiB; 0 for the smallest that keeps the manifest small if
	// Zstd is set, else for unsplit files. A file that uses either makes the
	// artifact one of format v2.
	Zstd  int
	Chunk int64

	// Packed selects the packed format. Granule is the least size of its
	// granules, a power of two from 16 KiB to 1 MiB; 0 for 32 KiB. Base, if
	// not nil, is a packed artifact whose packs are shared.
	Packed  bool
	Granule int64
	Base    *PushBase

	Memory      int64  // bytes of memory to use, at least 96 MiB; 0 for 256 MiB
	Concurrency int    // concurrent uploads of chunks; 0 for 8
	MountFrom   string // repository of the same registry to mount blobs from, or ""
	DryRun      bool   // read and look up everything, send nothing

	// OnBytes receives the number of bytes of blobs that were sent or found
	// since the last call; it is negative when a blob starts over. Several
	// goroutines may call it. May be nil.
	OnBytes func(delta int64)
}

// SpoolFile is a file that is written and then read.
type SpoolFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// PushResult describes the artifact that Push made.
type PushResult struct {
	Name           string
	Tag            string
	ManifestDigest string
	ManifestBytes  []byte
	TotalSize      int64 // stored bytes of files and config
	LayerCount     int

	SentBytes  int64 // bytes of blobs that were sent, or would be in a dry run
	ThereBytes int64 // bytes of blobs that the registry had or mounted
	Format     string
}

// Push exports a snapshot from cocoon, or reads the tar in opts.Input, and
// uploads it: first the files, in their order, then the config, then the
// manifest. It refuses an export that no reader could turn into a snapshot
// again with layout.ErrContent.
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
	// This ends a cocoon that is still writing, so its error is no fault of
	// cocoon's.
	waitErr := src.done()
	if readErr != nil && (waitErr == nil || !isInput(readErr) || !src.ended()) {
		return nil, readErr
	}
	if waitErr != nil {
		return nil, waitErr
	}
	return u.finish(ctx)
}

// source returns the source of the push: cocoon, which can export again, or
// an input, which can be read again if it can seek.
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

// export returns a function that starts cocoon's export. The function that
// this returns ends it and returns its error.
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

// push is the state of one Push.
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

// storedFile is a file that is stored or being uploaded: its layers, and its
// description in the config blob.
type storedFile struct {
	name    string
	size    int64 // of the payload
	layers  []manifest.Descriptor
	meta    manifest.SnapshotFile
	hashes  *blobHasher // nil if the file is encoded or split
	split   bool        // into layers that are chunks
	encoded bool
	left    atomic.Int64 // layers not yet uploaded, of a split or encoded file
}

// failed adds the file to an upload error.
func (f *storedFile) failed(err error) error { return fmt.Errorf("upload %s: %w", f.name, err) }

// files uploads every file of the export.
func (u *push) files(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return u.read(ctx, g) })
	return g.Wait()
}

// progress reports that a file is stored.
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

// stored returns the bytes that the file's layers take in the registry.
func (f *storedFile) stored() (n int64) {
	for i := range f.layers {
		n += f.layers[i].Size
	}
	return n
}

// read reads the export and has each file stored; g waits for the uploads.
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

// filesAtATime bounds the concurrent plain uploads of files from a tar that
// can seek.
const filesAtATime = 2

// one stores a file in the form that follows from the options and its size.
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
		if err := ctx.Err(); err != nil { // whatever the Uploader makes of it
			return nil, err
		}
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

// format returns the schema of a packed push, else v2 if a file uses it, else v1.
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
