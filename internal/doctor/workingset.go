package doctor

import (
	"context"

	"github.com/dustin/go-humanize"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/registry/hosts"
	"github.com/cocoonstack/epochfs/snapshot"
)

// checkWorkingSet asks the registry for the artifact's working set, as a
// mount does after it is ready. That there is none keeps no mount from
// working.
func checkWorkingSet(ctx context.Context, cfg *mounting.Config, ref registry.Reference, server *hosts.Host, a *snapshot.Artifact) Check {
	const name = "working set"
	client, err := cfg.Client(ref, server, false)
	if err != nil {
		return note(name, "", "not asked for: %v", err)
	}
	defer client.Close()
	found, api, err := mounting.FindWorkingSet(ctx, client, ref.Repository, a)
	list := "a tag, because it has no referrers API"
	if api {
		list = "the referrers API"
	}
	switch {
	case err != nil:
		return note(name, "record it anew: epochfs record --push", "%s is asked for one by %s, and what it has cannot be used: %v", ref.Host, list, err)
	case found == nil:
		return note(name, "epochfs record --push "+ref.String()+" -- COMMAND {}", "%s has none, asked by %s: a VM waits for each page that it touches first", ref.Host, list)
	}
	set := mounting.Inherit(found.Set, a.Files)
	return ok(name, "%s has one of %s, from %d recordings, found by %s, by %s", ref.Host, humanize.IBytes(uint64(set.Bytes())), set.Runs, found.By, list)
}
