package inventory

import (
	"path"
	"strings"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
)

// The sections of a packed file's index lie in disk.Blobs, each under its
// digest, from when a mount first needed them. They belong to every cached
// file whose head names them, and go with the last of these.

// sectionsOf returns the digests of the sections of a cached file's index:
// none if it is not packed, or if the cache has lost the head.
func sectionsOf(d *disk.Dir, key string) (all []string) {
	r, err := d.Record(key)
	if err != nil {
		return nil
	}
	return sectionsIn(d, r)
}

// sectionsIn is sectionsOf a file with that record.
func sectionsIn(d *disk.Dir, r *disk.Record) (all []string) {
	x := d.Index(r)
	if x == nil {
		return nil
	}
	for _, ref := range x.Head.Sections {
		all = append(all, digests.Format(ref.Sum))
	}
	return all
}

// allSections returns the digests of the sections, and of the heads that
// name them, of all cached files but those with the keys in without.
func allSections(d *disk.Dir, without map[string]bool) map[string]bool {
	all := map[string]bool{}
	names, _ := d.Names(disk.Files) // as many as there are
	for _, name := range names {
		key, ok := strings.CutSuffix(name, ".meta")
		if !ok || without[key] {
			continue
		}
		r, err := d.Record(key)
		if err != nil || len(r.Parts) != 1 || r.Index == nil {
			continue
		}
		all[r.Index.Head] = true
		for _, digest := range sectionsIn(d, r) {
			all[digest] = true
		}
	}
	return all
}

// dropSections removes those of the given sections that belong to no cached
// file any more, and returns how many there were with the bytes that they
// took on disk.
func dropSections(d *disk.Dir, sections []string) (n int, freed int64) {
	if len(sections) == 0 {
		return 0, 0
	}
	kept := allSections(d, nil)
	for _, digest := range sections {
		if kept[digest] {
			continue
		}
		kept[digest] = true // no digest twice
		digits, ok := digests.Hex(digest)
		if !ok {
			continue
		}
		name := path.Join(disk.Blobs, digits)
		info, err := d.Stat(name)
		if err == nil && d.Unlink(name) == nil {
			n++
			freed += disk.Blocks(info)
		}
	}
	return n, freed
}
