package cache

import (
	"path"
	"strings"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// The sections of a packed file's index lie in dirBlobs, each under its
// digest, from when a mount first needed them. They belong to every cached
// file whose head names them, and go with the last of these.

// sectionsOf returns the digests of the sections of a cached file's index:
// none if it is not packed, or if the cache has lost the head.
func (c *Cache) sectionsOf(key string) (digests []string) {
	r, _, f, err := c.readRecord(key)
	if err != nil {
		return nil
	}
	_ = f.Close()
	if len(r.Parts) != 1 || r.Index == nil {
		return nil
	}
	return c.sectionsIn(&r)
}

// sectionsIn is sectionsOf a packed file's record.
func (c *Cache) sectionsIn(r *record) (digests []string) {
	x := c.peerIndex(r)
	if x == nil {
		return nil
	}
	for _, ref := range x.Head.Sections {
		digests = append(digests, layout.DigestOf(ref.Sum))
	}
	return digests
}

// allSections returns the digests of the sections, and of the heads that
// name them, of all cached files but those with the keys in without.
func (c *Cache) allSections(without map[string]bool) map[string]bool {
	all := map[string]bool{}
	dir, err := c.root.Open(dirFiles)
	if err != nil {
		return all
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // as many as there are
	for _, name := range names {
		key, ok := strings.CutSuffix(name, ".meta")
		if !ok || without[key] {
			continue
		}
		r, _, f, err := c.readRecord(key)
		if err != nil {
			continue
		}
		_ = f.Close()
		if len(r.Parts) != 1 || r.Index == nil {
			continue
		}
		all[r.Index.Head] = true
		for _, d := range c.sectionsIn(&r) {
			all[d] = true
		}
	}
	return all
}

// dropSections removes those of the given sections that belong to no cached
// file any more, and returns how many there were with the bytes that they
// took on disk.
func (c *Cache) dropSections(digests []string) (n int, freed int64) {
	if len(digests) == 0 {
		return 0, 0
	}
	kept := c.allSections(nil)
	for _, d := range digests {
		if kept[d] {
			continue
		}
		kept[d] = true // no digest twice
		name := path.Join(dirBlobs, strings.TrimPrefix(d, "sha256:"))
		info, err := c.root.Lstat(name)
		if err == nil && c.unlink(name) == nil {
			n++
			freed += blocks(info)
		}
	}
	return n, freed
}
