package main

import (
	"context"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
)

// inheritSet gives the artifact that was written as ref the working set of the
// first of the others that has one. Its pages are those of the files of the
// same content or the same title. A set that cannot be had is a note: the
// artifact is written, and a set is only a hint.
func (g *globals) inheritSet(ctx context.Context, cfg mounting.Config, reg *registry.Registry, ref registry.Reference, others ...*mounting.Opened) {
	for _, from := range others {
		if from == nil || from.Artifact.Digest == ref.Digest {
			continue
		}
		found, _, err := mounting.FindWorkingSet(ctx, from.Registry, from.Reference.Repository, from.Artifact)
		if err == nil && found == nil {
			continue
		}
		if err == nil {
			err = putInherited(ctx, cfg, reg, ref, found)
		}
		if err != nil && ctx.Err() == nil {
			g.note("%s does not get the working set of %s: %v", ref, from.Reference, err)
		}
		return
	}
}

// putInherited uploads a set for another artifact, unless that has one.
func putInherited(ctx context.Context, cfg mounting.Config, reg *registry.Registry, ref registry.Reference, found *mounting.FoundSet) error {
	cfg.NoCache = true
	o, err := mounting.Open(ctx, ref.String(), cfg)
	if err != nil {
		return err
	}
	defer o.Close()
	has, _, err := mounting.FindWorkingSet(ctx, reg, ref.Repository, o.Artifact)
	if err != nil || has != nil && has.By != mounting.ByBase {
		return err
	}
	set := mounting.Inherit(found.Set, o.Artifact.Files)
	if len(set.Files) == 0 {
		return nil
	}
	_, err = mounting.PutWorkingSet(ctx, reg, ref.Repository, o.Artifact, set)
	return err
}
