package inventory

import (
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// Inventory is what a cache holds at a moment. Other processes may change
// it at any time.
type Inventory struct {
	Files     []StoredFile     // the least recently used first
	Artifacts []StoredArtifact // in the order of their references
	Small     int64            // bytes on disk of manifests, config blobs and references
	Disk      int64            // bytes on disk of everything
	Limit     int64            // bytes that everything may take
	Free      int64            // bytes that its file system has left for this user
}

// StoredFile is a cached file. Sizes are in bytes.
type StoredFile struct {
	Key      string // of its three files
	Name     string // the title it was first seen under; "" if that is lost
	Size     int64  // holes included
	Data     int64  // what is not a hole
	Local    int64  // of Data, what is present
	Disk     int64  // blocks, with its state and its record
	Verified bool   // all of it is present and was hashed against the artifact
	InUse    bool   // a process has it open
	Damaged  bool   // it cannot be read, and will be made anew
	Used     time.Time
}

// StoredArtifact is an artifact that was opened with this cache.
type StoredArtifact struct {
	Reference string   // by digest
	Digest    string   // of its manifest
	Tags      []string // references by tag that led to it when they were last asked for
	Files     []ArtifactFile
	Used      time.Time // when it was last opened

	blobs []string
}

// List returns what the directory holds. limit returns how many bytes it may
// take, given how many it takes.
func List(d *disk.Dir, limit func(used int64) int64) (*Inventory, error) {
	inv := &Inventory{}
	files, total := d.Usage()
	for _, s := range files {
		inv.Files = append(inv.Files, describe(d, s))
		inv.Small -= s.Disk
	}
	inv.Disk = total
	inv.Small = max(0, inv.Small+total-d.Spooled()) // a spool may have grown meanwhile
	inv.Limit = limit(total)
	all, err := refs(d)
	if err != nil {
		return nil, err
	}
	inv.Artifacts = artifacts(all)
	st, err := d.Statfs()
	if err != nil {
		return nil, err
	}
	inv.Free = int64(st.Bavail) * int64(st.Bsize)
	return inv, nil
}

// describe reads what is known of a cached file. Nothing is changed.
func describe(d *disk.Dir, s disk.Stored) StoredFile {
	f := StoredFile{Key: s.Key, Disk: s.Disk, Used: s.Used, Damaged: true}
	name := path.Join(disk.Files, s.Key)
	sf, err := d.OpenFile(name+".state", os.O_RDONLY)
	if err != nil {
		return f
	}
	defer sf.Close()
	f.InUse = disk.InUse(sf)
	r, local, verified, err := d.Presence(sf, s.Key)
	if r == nil {
		f.Damaged = !f.InUse // it may just be being made
		return f
	}
	f.Name, f.Size, f.Data, f.Local, f.Verified = r.Name, r.Size, r.DataSize(), local, verified
	if info, statErr := d.Stat(name + ".data"); err == nil && statErr == nil && info.Size() == r.Size {
		f.Damaged = false
	}
	return f
}

// artifacts makes one of each record that names an artifact by its digest,
// with the tags that lead there.
func artifacts(refs []ref) []StoredArtifact {
	var all []StoredArtifact
	for _, r := range refs {
		if len(r.Blobs) == 0 {
			continue
		}
		a := StoredArtifact{Reference: r.Reference, Digest: r.Digest, Files: r.Files, Used: r.used, blobs: r.Blobs}
		repository, _, _ := strings.Cut(r.Reference, "@")
		for _, t := range refs {
			if strings.HasPrefix(t.Reference, repository+":") && len(t.Blobs) == 0 && slices.Contains(r.Blobs, t.Digest) {
				a.Tags = append(a.Tags, t.Reference)
			}
		}
		slices.Sort(a.Tags)
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b StoredArtifact) int { return strings.Compare(a.Reference, b.Reference) })
	return all
}
