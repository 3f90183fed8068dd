// Package mounting joins registry, snapshot, cache and fs: it turns a
// reference into an open artifact whose files can be read, streamed or
// mounted, with as few requests as possible.
package mounting

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/registry/hosts"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Opened is an open artifact with a source of its bytes. It implements
// snapshot.Payloads. Its methods are safe for concurrent use.
type Opened struct {
	Reference registry.Reference // as given, with the digest it stands for
	Artifact  *snapshot.Artifact
	Registry  *registry.Mirrors
	Cache     *cache.Cache // nil without a cache
	Notes     []string     // messages for the user, one line each

	reader *cache.Reader // nil if no cache is read, or if it is also written
	source cache.Source
	known  *known
	cfg    Config

	reading sync.Mutex
	ordered ordered

	mu    sync.Mutex
	files map[*layout.File]*cache.File

	replay atomic.Pointer[Replay]
}

// Open resolves a reference and reads its manifest and config, from the
// cache if they are there. It asks the registry for a tag; if the registry
// is unreachable, it uses the digest that the tag last stood for, and adds a
// note.
func Open(ctx context.Context, reference string, cfg Config) (*Opened, error) {
	ref, err := cfg.Reference(reference)
	if err != nil {
		return nil, err
	}
	o := &Opened{files: map[*layout.File]*cache.File{}, cfg: cfg}
	o.Registry, err = cfg.mirrors(ref)
	if err != nil {
		return nil, err
	}
	if cfg.NoCache || cfg.OnlyRead {
		if err := o.openInOrder(ctx, ref); err != nil {
			return nil, errors.Join(err, o.Close())
		}
		return o, nil
	}
	o.Cache, err = cache.Open(cfg.CacheDir, cache.Options{
		Concurrency: cfg.Concurrency,
		ReadTimeout: cfg.ReadTimeout,
		Size:        cfg.CacheSize,
		LimitRate:   cfg.LimitRate,
		Memory:      cfg.buffers(),
		Log:         cfg.Log,
		Tardy:       cfg.Tardy,
	})
	if err != nil {
		o.Registry.Close()
		return nil, &cacheError{err}
	}
	if err := o.load(ctx, ref, cfg, o.Cache); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

func (o *Opened) load(ctx context.Context, ref registry.Reference, cfg Config, keep metadataStore) error {
	d := newDownloader(o.Registry, keep, ref, cfg)
	var err error
	if o.known, err = newKnown(cfg.Known); err != nil {
		return err
	}
	a, err := snapshot.Load(ctx, remembering{d, o.known}, ref.Repository, ref.Identifier(), snapshot.LoadOptions{Platform: cfg.Platform})
	if err != nil {
		return fmt.Errorf("%s: %w", ref, withTags(ctx, o.Registry.Own(), ref, err))
	}
	o.known.close()
	o.Artifact = a
	o.Reference = ref.WithDigest(a.Digest)
	o.source = explained{o.Registry.Source(ref.Repository)}
	if cfg.Offline {
		o.source = offline{o.source.(cache.Origin)}
	}
	if cfg.Known == nil { // else the process before has recorded it
		d.loaded(o.Reference.String(), a, o.source)
	}
	o.Notes = d.notes
	if a.Platform != "" {
		o.Notes = append(o.Notes, fmt.Sprintf("%s is an index; took its child for %s", ref, a.Platform))
	}
	if known, served := o.Registry.Ranges(); known && !served {
		o.Notes = append(o.Notes, fmt.Sprintf("%s ignores Range: the first read of a file fetches the file from its start", ref.Host))
	}
	if slices.ContainsFunc(a.Files, func(f *layout.File) bool { return cache.ReadWhole(f, o.source) }) {
		o.Notes = append(o.Notes, fmt.Sprintf("%s does not prove who it is (plain HTTP, or skip_verify): what has no digest but its blob's is read when the blob is complete", ref.Host))
	}
	return nil
}

// Reference parses a reference with the defaults of the environment.
func (c *Config) Reference(s string) (registry.Reference, error) {
	return registry.ParseReference(s, registry.ReferenceOptions{Registry: c.OCIRegistry, Server: c.EpochServer, PlainHTTP: c.PlainHTTP})
}

// Registry returns a client of the reference's host, for uploads.
func (c *Config) Registry(ref registry.Reference) (*registry.Registry, error) {
	opts := c.options()
	if opts.Patience = c.ReadTimeout; opts.Patience == 0 {
		opts.Patience = math.MaxInt64 // for ever
	}
	return registry.New(ref, opts)
}

// mirrors returns a client for reading, which uses mirrors if there are any.
func (c *Config) mirrors(ref registry.Reference) (*registry.Mirrors, error) {
	conf := &hosts.Config{}
	if !c.Offline {
		var err error
		if conf, err = c.Hosts(ref); err != nil {
			return nil, err
		}
	}
	return registry.NewMirrors(ref, conf, c.options())
}

func (c *Config) options() registry.Options {
	return registry.Options{
		CACert:      c.CACert,
		EpochServer: c.EpochServer,
		EpochToken:  c.EpochToken,
		PlainHTTP:   c.PlainHTTP,
		Concurrency: c.Concurrency,
		UserAgent:   c.UserAgent,
		Log:         c.Log,
	}
}

// File opens one of the artifact's files in the cache. It stays open until o
// is closed. File fetches nothing.
func (o *Opened) File(f *layout.File) (*cache.File, error) {
	o.mu.Lock()
	open, ok := o.files[f]
	o.mu.Unlock()
	if ok {
		return open, nil
	}
	// Without the mutex, as this may wait.
	mine, err := o.Cache.File(f, o.source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if open, ok = o.files[f]; ok {
		return open, mine.Close()
	}
	o.files[f] = mine
	return mine, nil
}

// opened returns the open files by name.
func (o *Opened) opened() map[string]*cache.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[string]*cache.File, len(o.files))
	for f, open := range o.files {
		all[f.Name] = open
	}
	return all
}

// Sizes are sums over the files of an artifact, in bytes.
type Sizes struct {
	Apparent int64 // including holes
	Data     int64 // without holes
	Stored   int64 // in the registry
	Local    int64 // part of Data that is in the cache
}

// Sizes opens all files in the cache and returns their total sizes.
func (o *Opened) Sizes() (Sizes, error) {
	var s Sizes
	for i, f := range o.Artifact.Files {
		s.Apparent += f.Size()
		s.Data += f.PayloadSize()
		s.Stored += f.StoredSize()
		if o.Cache == nil {
			s.Local += o.ordered.has(i)
			continue
		}
		open, err := o.File(f)
		if err != nil {
			return Sizes{}, err
		}
		s.Local += open.Cached()
	}
	return s, nil
}

// Close closes the files, the cache and the registry's connections. Reads
// must have ended.
func (o *Opened) Close() error {
	if r := o.replay.Load(); r != nil {
		r.close()
	}
	o.ordered.close()
	var errs []error
	if o.reader != nil {
		errs = append(errs, o.reader.Close())
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range o.files {
		errs = append(errs, f.Close())
	}
	clear(o.files)
	if o.Cache != nil {
		errs = append(errs, o.Cache.Close())
	}
	o.Registry.Close()
	return errors.Join(errs...)
}
