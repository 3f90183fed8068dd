package cache

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// mostBlob bounds a manifest or config blob that is kept.
const mostBlob = 64 << 20

// Blob returns a small blob that was kept whole: a manifest or a config
// blob. It fails with fs.ErrNotExist where there is none; one that does
// not have its digest any more is removed and counts as none.
func (c *Cache) Blob(digest string) ([]byte, error) {
	data, err := c.readBlob(digest)
	if errors.Is(err, errDamaged) {
		if name, err := blobPath(digest); err == nil && !c.onlyRead {
			_ = c.root.Remove(name)
		}
		err = fmt.Errorf("cached blob %s is damaged: %w", digest, fs.ErrNotExist)
	}
	return data, err
}

// readBlob reads a small blob. If it has another digest, the error is
// errDamaged.
func (c *Cache) readBlob(digest string) ([]byte, error) {
	name, err := blobPath(digest)
	if err != nil {
		return nil, err
	}
	data, err := c.readFile(name)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); "sha256:"+hex.EncodeToString(sum[:]) != digest {
		return nil, errDamaged
	}
	return data, nil
}

// PutBlob keeps a small blob. data must have the digest.
func (c *Cache) PutBlob(digest string, data []byte) error {
	name, err := blobPath(digest)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); "sha256:"+hex.EncodeToString(sum[:]) != digest {
		return fmt.Errorf("blob %s: %w", digest, layout.ErrContent)
	}
	return c.refused(name, c.writeFile(name, data))
}

func blobPath(digest string) (string, error) {
	hexa, ok := strings.CutPrefix(digest, "sha256:")
	if raw, err := hex.DecodeString(hexa); !ok || err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("digest %q: %w", digest, layout.ErrContent)
	}
	return path.Join(dirBlobs, hexa), nil
}

// refRecord is what stands in a file of dirRefs. Files and blobs are there
// where the reference names an artifact by its digest.
type refRecord struct {
	Reference string    `json:"reference"`
	Digest    string    `json:"digest"`
	Seen      time.Time `json:"seen"`
	Files     []refFile `json:"files,omitempty"`
	Blobs     []string  `json:"blobs,omitempty"` // digests of what of it lies in dirBlobs
}

// refFile is a file of an artifact, by its key in the cache.
type refFile struct {
	Key  string `json:"key"`
	Name string `json:"name"`
}

// Ref returns what a reference was last seen as, and when. It fails with
// fs.ErrNotExist where it was never seen.
func (c *Cache) Ref(reference string) (digest string, seen time.Time, err error) {
	r, err := c.readRef(refPath(reference))
	if err == nil && r.Reference != reference {
		err = fmt.Errorf("cached reference %q is damaged: %w", reference, fs.ErrNotExist)
	}
	if err != nil {
		return "", time.Time{}, err
	}
	return r.Digest, r.Seen, nil
}

// readRef reads a file of dirRefs. One that is damaged counts as none.
func (c *Cache) readRef(name string) (r refRecord, err error) {
	data, err := c.readFile(name)
	if err != nil {
		return refRecord{}, err
	}
	r, ok := parseRef(name, data)
	if !ok {
		return refRecord{}, fmt.Errorf("%s is damaged: %w", name, fs.ErrNotExist)
	}
	return r, nil
}

// parseRef is the record in a file of that name; not ok where it is
// another's, or none.
func parseRef(name string, data []byte) (r refRecord, ok bool) {
	err := json.Unmarshal(data, &r)
	return r, err == nil && refPath(r.Reference) == name
}

// PutRef notes that a reference names a digest now.
func (c *Cache) PutRef(reference, digest string) error {
	data, err := json.Marshal(refRecord{Reference: reference, Digest: digest, Seen: time.Now().UTC()})
	if err != nil {
		return err
	}
	return c.refused(reference, c.writeFile(refPath(reference), data))
}

// PutArtifact notes what an artifact consists of, for those who look at
// the cache without it: its files, as File keeps them from src, and the
// small blobs with the given digests. reference names it by its digest.
func (c *Cache) PutArtifact(reference, digest string, files []*layout.File, src Source, blobs []string) error {
	r := refRecord{Reference: reference, Digest: digest, Seen: time.Now().UTC(), Blobs: blobs}
	for _, f := range files {
		r.Files = append(r.Files, refFile{keyOf(f, newGrid(f), src), f.Name})
	}
	name := refPath(reference)
	if old, err := c.readRef(name); err == nil && old.Digest == digest && slices.Equal(old.Files, r.Files) && slices.Equal(old.Blobs, blobs) {
		err := c.root.Chtimes(name, r.Seen, r.Seen) // when it was last used
		if readOnly(err) {
			return nil // nobody evicts there
		}
		return c.refused(reference, err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.refused(reference, c.writeFile(name, data))
}

func refPath(reference string) string {
	sum := sha256.Sum256([]byte(reference))
	return path.Join(dirRefs, hex.EncodeToString(sum[:])+".json")
}

func (c *Cache) readFile(name string) ([]byte, error) {
	f, err := c.root.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostBlob+1))
	if err == nil && len(data) > mostBlob {
		err = fmt.Errorf("%s is larger than %d bytes: %w", name, mostBlob, fs.ErrInvalid)
	}
	return data, err
}

// tmpMark is in the names of files that are being written; one that is
// older than tmpAge was left by a process that died.
const (
	tmpMark = ".tmp-"
	tmpAge  = time.Hour
)

// sweep removes what dead processes were writing.
func (c *Cache) sweep() {
	for _, d := range []string{dirFiles, dirBlobs, dirRefs} {
		dir, err := c.root.Open(d)
		if err != nil {
			continue
		}
		names, _ := dir.Readdirnames(-1) // as many as can be read
		_ = dir.Close()
		for _, name := range names {
			if !strings.Contains(name, tmpMark) {
				continue
			}
			spool := strings.HasPrefix(name, spoolMark)
			name = path.Join(d, name)
			if spool { // its lock tells, however old it is
				c.sweepSpool(name)
				continue
			}
			if info, err := c.root.Lstat(name); err == nil && time.Since(info.ModTime()).Abs() > tmpAge { // clocks are set back, too
				_ = c.root.Remove(name) // the next one tries again
			}
		}
	}
}

// writeFile puts a small file in place: whole, or as it was.
func (c *Cache) writeFile(name string, data []byte) error {
	if old, err := c.readFile(name); err == nil && bytes.Equal(old, data) {
		return nil
	}
	tmp := name + tmpMark + rand.Text()
	f, err := c.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|openFlags, 0o600)
	if err != nil {
		return err
	}
	crashpoint.Reach("temporary file made")
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		crashpoint.Reach("temporary file written")
		err = c.root.Rename(tmp, name)
	}
	if err != nil {
		_ = c.root.Remove(tmp)
	}
	return err
}
