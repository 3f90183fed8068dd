package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/registry/credentials"
	"github.com/cocoonstack/epochfs/registry/hosts"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// patience bounds the wait for one host.
const patience = 20 * time.Second

// checkRegistry asks the reference's registry and each of its mirrors for
// what a mount would ask for.
func checkRegistry(ctx context.Context, cfg *mounting.Config, reference string) []Check {
	ref, err := cfg.Reference(reference)
	if err != nil {
		return []Check{problem("registry", "", err)}
	}
	conf, err := cfg.Hosts(ref)
	if err != nil {
		return []Check{problem("mirrors", "correct that file, or use another directory: --hosts-dir", err)}
	}
	all, a := checkOwn(ctx, cfg, ref, conf.Server)
	switch err := Err(all); {
	case err == nil:
	case len(conf.Mirrors) > 0 && opens(ctx, cfg, reference, true): // a mount asks them first
		demote(all, "a mount works only through a mirror")
	case errors.Is(err, registry.ErrUnreachable) && opensCached(ctx, cfg, reference):
		demote(all, "a mount works only with what is in the cache")
	}
	if conf.File == "" {
		return append(all, ok("mirrors", "none are configured for %s", ref.Host))
	}
	if len(conf.Unknown) > 0 {
		all = append(all, note("mirrors", "remove them from "+conf.File, "keys without effect: %s", strings.Join(conf.Unknown, ", ")))
	}
	if len(conf.Mirrors) == 0 {
		return append(all, ok("mirrors", "%s names none", conf.File))
	}
	for i := range conf.Mirrors {
		all = append(all, checkMirror(ctx, cfg, ref, &conf.Mirrors[i], a, conf.File))
	}
	return all
}

// checkOwn checks the registry itself. The artifact is nil if the registry
// does not have it.
func checkOwn(ctx context.Context, cfg *mounting.Config, ref registry.Reference, server *hosts.Host) ([]Check, *snapshot.Artifact) {
	if cfg.Offline {
		if !opensCached(ctx, cfg, ref.String()) {
			return []Check{problem("registry", "leave out --offline", mounting.ErrOffline)}, nil
		}
		return []Check{note("registry", "leave out --offline", "not asked")}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	a, _, err := load(ctx, cfg, ref, server, true)
	took := time.Since(began)
	keys := stored("needs no credentials", new(credentials.Store).Check())
	if errors.Is(err, registry.ErrDenied) || errors.Is(err, registry.ErrNotFound) {
		began = time.Now()
		open := err
		var used keysUsed
		if a, used, err = load(ctx, cfg, ref, server, false); !errors.Is(err, registry.ErrDenied) {
			keys = stored("the credentials are accepted", used.err)
			if used.from != "" {
				keys = stored("the credentials from "+used.from+" are accepted", used.err)
			}
			if errors.Is(open, registry.ErrNotFound) && err != nil {
				keys = stored("it was asked with and without credentials", used.err)
			}
			took = time.Since(began)
		}
	}
	reached := ok("registry", "%s answers, in %s", ref.Host, took.Round(time.Millisecond))
	switch {
	case errors.Is(err, registry.ErrDenied):
		return []Check{reached, problem("credentials", admit(err, ref.Host), err)}, nil
	case errors.Is(err, registry.ErrNotFound):
		return []Check{reached, keys, problem("reference", "use an existing one", cfg.WithTags(ctx, ref, server, err))}, nil
	case errors.Is(err, layout.ErrContent), errors.Is(err, registry.ErrContent), errors.Is(err, snapshot.ErrKind):
		return []Check{reached, keys, problem("reference", "push it with epochfs push, or name a snapshot", err)}, nil
	case err != nil:
		return []Check{problem("registry", reach(err), err)}, nil
	}
	var size, data int64
	for _, f := range a.Files {
		size, data = size+f.Size(), data+f.PayloadSize()
	}
	found := ok("reference", "%s, %d files, %s, %s of data", a.Kind, len(a.Files), humanize.IBytes(uint64(size)), humanize.IBytes(uint64(data)))
	checks := []Check{reached, keys, found, checkRange(ctx, cfg, ref, server, a)}
	if a.Kind == manifest.KindSnapshot {
		checks = append(checks, checkWorkingSet(ctx, cfg, ref, server, a))
	}
	return checks, a
}

// demote turns problems that keep no mount from working into notes.
func demote(all []Check, why string) {
	for i := range all {
		if c := &all[i]; c.Level == Problem {
			c.Level, c.Err, c.Found = Note, nil, why+": "+c.Found
		}
	}
}

// keysUsed is where a client found its credentials, and what it could not
// read during the lookup.
type keysUsed struct {
	from string
	err  error
}

// stored returns the check of the stored credentials for a registry that
// answers.
func stored(found string, err error) Check {
	if err != nil {
		return note("credentials", "correct it: none of its credentials are used", "%s; %v", found, err)
	}
	return ok("credentials", "%s", found)
}

// reach returns what to do about a registry that does not answer.
func reach(err error) string {
	var e *registry.Error
	switch {
	case errors.Is(err, registry.ErrRoots):
		return "set EPOCH_CA_CERT, or ca in hosts.toml, to a readable PEM file"
	case errors.As(err, &e) && e.Hint != "":
		return e.Hint
	}
	return "check the network, the name, HTTPS_PROXY and NO_PROXY"
}

// admit returns what to do about a registry that refuses.
func admit(err error, host string) string {
	var e *registry.Error
	if errors.As(err, &e) && e.Helper != "" {
		return "install " + e.Helper + ", or remove it from the file that names it"
	}
	return "docker login " + host + "; for the epoch server set EPOCH_REGISTRY_TOKEN"
}

// opens reports whether a mount would open the artifact from any host, with
// or without the cache.
func opens(ctx context.Context, cfg *mounting.Config, reference string, noCache bool) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	c := *cfg
	c.NoCache = noCache
	o, err := mounting.Open(ctx, reference, c)
	return err == nil && o.Close() == nil
}

// opensCached reports whether a mount would open the artifact without the
// registry. It makes no cache.
func opensCached(ctx context.Context, cfg *mounting.Config, reference string) bool {
	if _, err := os.Stat(cfg.CacheDir); err != nil {
		return false
	}
	c := *cfg
	c.Offline = true // so that it need not wait
	return opens(ctx, &c, reference, false) && (cfg.Offline || opens(ctx, cfg, reference, false))
}

// load opens the artifact as a mount would.
func load(ctx context.Context, cfg *mounting.Config, ref registry.Reference, h *hosts.Host, anonymous bool) (*snapshot.Artifact, keysUsed, error) {
	client, err := cfg.Client(ref, h, anonymous)
	if err != nil {
		return nil, keysUsed{}, err
	}
	defer client.Close()
	a, err := snapshot.Load(ctx, client.Own(), ref.Repository, ref.Identifier(), snapshot.LoadOptions{Platform: cfg.Platform})
	var used keysUsed
	used.from, used.err = client.Own().CredentialsFrom()
	return a, used, err
}

// largest returns the part with the most stored bytes, or nil. Each pack of a
// packed file counts as one.
func largest(a *snapshot.Artifact) (most *layout.Part) {
	for _, f := range a.Files {
		parts := f.Parts
		if x := f.Index; x != nil {
			parts = nil
			for i := range x.Head.Packs {
				digest, size := x.Pack(i)
				parts = append(parts, layout.Part{Digest: digest, StoredSize: size})
			}
		}
		for i := range parts {
			if p := &parts[i]; most == nil || p.StoredSize > most.StoredSize {
				most = p
			}
		}
	}
	return most
}

// askRange requests one byte of a blob. It reports whether the answer was that
// byte alone, and whether the host has proved its identity.
func askRange(ctx context.Context, cfg *mounting.Config, ref registry.Reference, h *hosts.Host, p *layout.Part, off int64) (honoured, proven bool, err error) {
	client, err := cfg.Client(ref, h, false)
	if err != nil {
		return false, false, err
	}
	defer client.Close()
	body, whole, err := client.Own().Source(ref.Repository).OpenBlob(ctx, p.Digest, p.StoredSize, off, 1)
	if err != nil {
		return false, false, err
	}
	return !whole, client.Source(ref.Repository).Proven(), body.Close()
}

const wholeBlobs = "the first read of a file fetches the file from its start"

func checkRange(ctx context.Context, cfg *mounting.Config, ref registry.Reference, server *hosts.Host, a *snapshot.Artifact) Check {
	p := largest(a)
	if p == nil || p.StoredSize < 2 {
		return ok("range", "the artifact has no blobs")
	}
	switch honoured, proven, err := askRange(ctx, cfg, ref, server, p, p.StoredSize/2); {
	case err != nil:
		return problem("range", "check the blob in the registry", fmt.Errorf("a blob cannot be read: %w", err))
	case !honoured:
		return note("range", "add a mirror that honours ranges: hosts.toml", "%s ignores Range: %s", ref.Host, wholeBlobs)
	case !proven:
		return note("range", "give it TLS with a certificate that can be verified", "%s honours Range, but does not prove its identity: bytes without a digest of their own are read only after the whole blob", ref.Host)
	}
	return ok("range", "%s honours Range", ref.Host)
}

// checkMirror asks a mirror for the manifest by its digest, as a mount
// would. The registry serves what the mirror lacks.
func checkMirror(ctx context.Context, cfg *mounting.Config, ref registry.Reference, h *hosts.Host, a *snapshot.Artifact, file string) Check {
	const name = "mirror"
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	where := h.Scheme + "://" + h.Host
	do := "check it, or remove it from " + file
	if a != nil {
		ref = ref.WithDigest(a.Digest)
	}
	began := time.Now()
	_, _, err := load(ctx, cfg, ref, h, false)
	took := time.Since(began).Round(time.Millisecond)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return note(name, "", "%s answers, and does not have it: the registry is asked instead", where)
	case err != nil:
		return note(name, do, "%s is passed over: %v", where, err)
	}
	if a == nil {
		return ok(name, "%s has it, in %s", where, took)
	}
	p := largest(a)
	if p == nil || p.StoredSize < 2 {
		return ok(name, "%s has it, in %s", where, took)
	}
	l, err := askTwice(ctx, cfg, ref, h, p)
	if err != nil && ctx.Err() == nil {
		return note(name, do, "%s has the manifest, but not the blobs: %v", where, err)
	}
	if why := l.fetchesWhole(err); why != "" {
		return note(name, "put a cache of slices in its place: docs/operations.md, Site caches", "%s fetches whole blobs: %s", where, why)
	}
	found := fmt.Sprintf("%s has it, in %s; lazy: parts of a blob of %s came in %s and %s", where, took, humanize.IBytes(uint64(p.StoredSize)), short(l.first), short(l.second))
	if !l.proven {
		found += "; it does not prove who it is, so it is not asked for tags, nor for bytes without a digest"
	}
	return ok(name, "%s", found)
}

// laziness is what came of asking a mirror for two small ranges of one blob,
// far apart, one after the other.
type laziness struct {
	whole         bool // all of the blob came for one of them
	proven        bool // who sent it has proved who it is
	first, second time.Duration
}

// A mirror that has to fetch all of a blob before it answers takes long for
// the first range, and next to no time for the second.
const (
	longForOne = time.Second
	muchLonger = 8 // times
)

// fetchesWhole returns why the mirror is one that fetches whole blobs, "" if it
// is lazy. err is that of the time that ran out.
func (l laziness) fetchesWhole(err error) string {
	switch {
	case err != nil:
		return fmt.Sprintf("no part of one came within %s", patience)
	case l.whole:
		return "all of one came for a part of it"
	case l.first > longForOne && l.first > muchLonger*l.second:
		return fmt.Sprintf("a part of one came after %s, and another part then in %s", short(l.first), short(l.second))
	}
	return ""
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// askTwice asks for a byte in the middle of a blob, and for one near its start.
func askTwice(ctx context.Context, cfg *mounting.Config, ref registry.Reference, h *hosts.Host, p *layout.Part) (l laziness, err error) {
	l.first, err = l.ask(ctx, cfg, ref, h, p, p.StoredSize/2)
	if err == nil && !l.whole {
		l.second, err = l.ask(ctx, cfg, ref, h, p, p.StoredSize/8)
	}
	return l, err
}

func (l *laziness) ask(ctx context.Context, cfg *mounting.Config, ref registry.Reference, h *hosts.Host, p *layout.Part, off int64) (time.Duration, error) {
	began := time.Now()
	honoured, proven, err := askRange(ctx, cfg, ref, h, p, off)
	l.whole, l.proven = l.whole || !honoured, proven
	return time.Since(began), err
}

// checkCocoon looks for the program that some commands run.
func checkCocoon(ctx context.Context, named string) Check {
	const name, needed = "cocoon", "only push SNAPSHOT and materialize need it"
	binary, err := cocoon.ResolveBinary(named)
	if err != nil {
		return note(name, "install cocoon, or set "+cocoon.BinaryEnv+" to its path", "%v: %s", err, needed)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all, err := (&cocoon.Exec{Binary: binary}).List(ctx)
	if err != nil {
		return note(name, binary+" snapshot list", "%s does not list its snapshots (%v): %s", binary, err, needed)
	}
	return ok(name, "%s has %d snapshots", binary, len(all))
}
