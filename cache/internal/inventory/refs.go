package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// refRecord is a file of disk.Refs. Files and blobs are there if the reference
// names an artifact by its digest.
type refRecord struct {
	Reference string         `json:"reference"`
	Digest    string         `json:"digest"`
	Seen      time.Time      `json:"seen"`
	Files     []ArtifactFile `json:"files,omitempty"`
	Blobs     []string       `json:"blobs,omitempty"` // digests of what of it lies in disk.Blobs
}

// ArtifactFile is a file of an artifact. What the cache has of it, if
// anything, is the StoredFile with that key.
type ArtifactFile struct {
	Key  string `json:"key"`
	Name string `json:"name"`
}

// Ref returns what a reference was last seen as, and when. If it was never
// seen, the error is fs.ErrNotExist.
func Ref(d *disk.Dir, reference string) (digest string, seen time.Time, err error) {
	r, err := readRef(d, refPath(reference))
	if err == nil && r.Reference != reference {
		err = fmt.Errorf("cached reference %q is damaged: %w", reference, fs.ErrNotExist)
	}
	if err != nil {
		return "", time.Time{}, err
	}
	return r.Digest, r.Seen, nil
}

// readRef reads a file of disk.Refs. One that is damaged counts as none.
func readRef(d *disk.Dir, name string) (r refRecord, err error) {
	data, err := d.ReadFile(name)
	if err != nil {
		return refRecord{}, err
	}
	r, ok := parseRef(name, data)
	if !ok {
		return refRecord{}, fmt.Errorf("%s is damaged: %w", name, fs.ErrNotExist)
	}
	return r, nil
}

// parseRef returns the record in a file of that name. ok is false if it is
// another's, or none.
func parseRef(name string, data []byte) (r refRecord, ok bool) {
	err := json.Unmarshal(data, &r)
	return r, err == nil && refPath(r.Reference) == name
}

// PutRef notes that a reference names a digest now.
func PutRef(d *disk.Dir, reference, digest string) error {
	data, err := json.Marshal(refRecord{Reference: reference, Digest: digest, Seen: time.Now().UTC()})
	if err != nil {
		return err
	}
	return d.WriteFile(refPath(reference), data)
}

// PutArtifact notes what the artifact that reference names by its digest
// consists of: its files, and the small blobs with the given digests.
func PutArtifact(d *disk.Dir, reference, digest string, files []ArtifactFile, blobs []string) error {
	r := refRecord{Reference: reference, Digest: digest, Seen: time.Now().UTC(), Files: files, Blobs: blobs}
	name := refPath(reference)
	if old, err := readRef(d, name); err == nil && old.Digest == digest && slices.Equal(old.Files, r.Files) && slices.Equal(old.Blobs, blobs) {
		err := d.Touch(name, r.Seen) // when it was last used
		if disk.IsReadOnly(err) {
			return nil // nobody evicts there
		}
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return d.WriteFile(name, data)
}

func refPath(reference string) string {
	sum := sha256.Sum256([]byte(reference))
	return path.Join(disk.Refs, hex.EncodeToString(sum[:])+".json")
}

// ref is a record of disk.Refs, and what it costs.
type ref struct {
	refRecord
	name string // below the cache's directory
	disk int64
	used time.Time
}

// refs reads all records of disk.Refs that can be read.
func refs(d *disk.Dir) ([]ref, error) {
	var all []ref
	err := eachSmall(d, disk.Refs, func(name string, info fs.FileInfo) {
		if r, err := readRef(d, name); err == nil {
			all = append(all, ref{r, name, disk.Blocks(info), info.ModTime()})
		}
	})
	return all, err
}

// eachSmall calls do for each file of a directory, but for those that are
// being written.
func eachSmall(d *disk.Dir, sub string, do func(name string, info fs.FileInfo)) error {
	names, err := d.Names(sub)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.Contains(name, disk.TmpMark) {
			continue
		}
		name = path.Join(sub, name)
		if info, err := d.Stat(name); err == nil && info.Mode().IsRegular() {
			do(name, info)
		}
	}
	return nil
}
