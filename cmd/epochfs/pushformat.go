package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// formatOptions select the format of an artifact, for push and convert.
type formatOptions struct {
	format string // "" to choose by the other flags
	base   string // a reference, "none", or "" for what the tag names now
	zstd   int
	chunk  byteSize
}

const (
	formatV1     = "v1"
	formatV2     = "v2"
	formatPacked = "packed"

	noBase = "none"
)

func (o *formatOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.format, "format", "", "format of the artifact: v1, v2 or packed (default v1, or v2 with --zstd or --chunk)")
	f.StringVar(&o.base, "base", "", "packed artifact to share data with, or none (format packed; default the one that the tag names now)")
	f.IntVar(&o.zstd, "zstd", 0, "compress with this level of zstd, 1 to 22 (format v2 or packed; default 3 for packed)")
	f.Var(&o.chunk, "chunk", "split files by this size, such as 4MiB (format v2; default with --zstd: the smallest that keeps the manifest small)")
}

// apply checks the flags, and sets p accordingly.
func (o *formatOptions) apply(p *snapshot.PushOptions) error {
	switch {
	case o.zstd < 0 || o.zstd > 22:
		return usagef("--zstd is a level from 1 to 22, not %d", o.zstd)
	case o.chunk%(1<<20) != 0 || o.chunk > 1<<40:
		return usagef("--chunk is a multiple of 1MiB, such as 4MiB")
	case o.base != "" && o.format != formatPacked:
		return usagef("--base goes with --format packed")
	}
	switch o.format {
	case "":
	case formatV1:
		if o.zstd > 0 || o.chunk > 0 {
			return usagef("format v1 has no --zstd and no --chunk")
		}
	case formatV2:
		if o.zstd == 0 && o.chunk == 0 {
			o.zstd = 3
		}
	case formatPacked:
		if o.chunk > 0 {
			return usagef("--chunk goes with format v2: a packed artifact has no chunks")
		}
		p.Packed = true
	default:
		return usagef("--format is v1, v2 or packed, not %q", o.format)
	}
	p.Zstd, p.Chunk = o.zstd, int64(o.chunk)
	return nil
}

// openBase opens the base of a packed artifact that is to be written as ref,
// or returns nil if there is none. The caller must close it.
func (o *formatOptions) openBase(ctx context.Context, cfg mounting.Config, ref registry.Reference) (*mounting.Opened, error) {
	if o.format != formatPacked || o.base == noBase {
		return nil, nil
	}
	name := o.base
	if name == "" {
		name = ref.String()
	} else if base, err := cfg.Reference(name); err != nil {
		return nil, err
	} else if base.Host != ref.Host {
		return nil, usagef("--base %s is in another registry than %s: packs are shared within one", base, ref)
	}
	opened, err := mounting.Open(ctx, name, cfg)
	if o.base == "" && (errors.Is(err, registry.ErrNotFound) || errors.Is(err, snapshot.ErrKind)) {
		return nil, nil // the tag is free, or names another kind of artifact
	}
	if o.base == "" && errors.Is(err, registry.ErrDenied) {
		return nil, fmt.Errorf("the base of the push cannot be read, --base none pushes without one: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if opened.Artifact.Manifest.ArtifactType != manifest.ArtifactTypePacked {
		_ = opened.Close() // it was only read
		if o.base == "" {
			return nil, nil
		}
		return nil, usagef("--base %s is not a packed artifact: convert it to one", o.base)
	}
	return opened, nil
}

// setBase makes an open artifact the base of a push. base may be nil.
func setBase(p *snapshot.PushOptions, base *mounting.Opened) {
	if base != nil {
		p.Base = &snapshot.PushBase{Artifact: base.Artifact, Name: base.Reference.Repository}
	}
}

// closeBase closes a base that was only read, or nil.
func closeBase(base *mounting.Opened) {
	if base != nil {
		_ = base.Close()
	}
}
