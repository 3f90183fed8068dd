package cache

import (
	"context"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/inventory"
)

// What a cache holds, and what can be done about it. See the package inventory.
type (
	// Inventory is what a cache holds at a moment. Other processes may change
	// it at any time.
	Inventory = inventory.Inventory
	// StoredFile is a cached file.
	StoredFile = inventory.StoredFile
	// StoredArtifact is an artifact that was opened with this cache.
	StoredArtifact = inventory.StoredArtifact
	// ArtifactFile is a file of an artifact.
	ArtifactFile = inventory.ArtifactFile
	// PruneOptions choose what is to go.
	PruneOptions = inventory.PruneOptions
	// Pruned is what has gone.
	Pruned = inventory.Pruned
	// Verification is what Verify has read and found.
	Verification = inventory.Verification
	// Finding is something of the cache that was not as it had been kept.
	Finding = inventory.Finding
)

// Inventory lists the cache.
func (c *Cache) Inventory() (*Inventory, error) { return inventory.List(c.dir, c.quota.Limit) }

// Prune removes files that nobody uses, as whole files by unlink, and then
// the manifests, config blobs and references of artifacts of which no file
// is left. When ctx ends it stops before the next file, and returns what has
// gone until then.
func (c *Cache) Prune(ctx context.Context, opts PruneOptions) (Pruned, error) {
	return inventory.Prune(ctx, c.dir, c.quota.Limit, opts)
}

// Verify reads everything that is present and compares it with checksums and
// digests. Wrong pieces become missing, so that they are fetched again, and a
// file that cannot be read at all is removed; both are in the result. onBytes
// is called with the bytes that were read. When ctx ends, Verify returns the
// result so far with the error of ctx.
func (c *Cache) Verify(ctx context.Context, onBytes func(int64)) (Verification, error) {
	return inventory.Verify(ctx, c.dir, onBytes)
}

// evict makes room for over bytes, of files that nobody uses, in the given
// order, and then of those that were open to be copied from alone.
func (c *Cache) evict(files []disk.Stored, over int64) (freed int64) {
	freed = inventory.Evict(c.dir, files, over)
	if freed < over {
		freed += inventory.Evict(c.dir, c.givenBack(files), over-freed)
	}
	return freed
}
