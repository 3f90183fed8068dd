package cache

import (
	"os"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/inventory"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Blob returns a small blob that was kept whole: a manifest or a config
// blob. If there is none, the error is fs.ErrNotExist; one that does not have
// its digest any more is removed and counts as none.
func (c *Cache) Blob(digest string) ([]byte, error) { return c.dir.Blob(digest) }

// PutBlob keeps a small blob. data must have the digest.
func (c *Cache) PutBlob(digest string, data []byte) error {
	return c.report.small("blob "+digest, c.dir.PutBlob(digest, data))
}

// Ref returns what a reference was last seen as, and when. If it was never
// seen, the error is fs.ErrNotExist.
func (c *Cache) Ref(reference string) (digest string, seen time.Time, err error) {
	return inventory.Ref(c.dir, reference)
}

// PutRef notes that a reference names a digest now.
func (c *Cache) PutRef(reference, digest string) error {
	return c.report.small(reference, inventory.PutRef(c.dir, reference, digest))
}

// PutArtifact notes what an artifact consists of, for commands that read the
// cache without it: its files, as File keeps them from src, and the small
// blobs with the given digests. reference names it by its digest.
func (c *Cache) PutArtifact(reference, digest string, files []*layout.File, src Source, blobs []string) error {
	var all []inventory.ArtifactFile
	for _, f := range files {
		all = append(all, inventory.ArtifactFile{Key: keyOf(f, disk.NewGrid(f), src), Name: f.Name})
	}
	return c.report.small(reference, inventory.PutArtifact(c.dir, reference, digest, all, blobs))
}

// Try does with f, which is empty and on the file system of a cache, what
// cached files need of it: locks, room that is reserved, and shared maps. It
// reports whether room is made by writing zeros.
func Try(f *os.File) (zeros bool, err error) { return disk.Try(f) }
