package cache

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
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
	Name     string // the title it was first seen under; "" where that is lost
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

// ArtifactFile is a file of an artifact. What the cache has of it, if
// anything, is the StoredFile with that key.
type ArtifactFile struct{ Key, Name string }

// Inventory lists the cache.
func (c *Cache) Inventory() (*Inventory, error) {
	inv := &Inventory{}
	files, total := c.usage()
	for _, s := range files {
		inv.Files = append(inv.Files, c.describe(s))
		inv.Small -= s.disk
	}
	inv.Disk = total
	inv.Small = max(0, inv.Small+total-c.spooled()) // a spool may have grown meanwhile
	inv.Limit = c.limit(total)
	refs, err := c.refs()
	if err != nil {
		return nil, err
	}
	inv.Artifacts = artifacts(refs)
	st, err := c.statfs()
	if err != nil {
		return nil, err
	}
	inv.Free = int64(st.Bavail) * int64(st.Bsize)
	return inv, nil
}

// describe reads what is known of a cached file. Nothing is changed.
func (c *Cache) describe(s stored) StoredFile {
	f := StoredFile{Key: s.key, Disk: s.disk, Used: s.used, Damaged: true}
	sf, err := c.root.OpenFile(path.Join(dirFiles, s.key+".state"), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return f
	}
	defer sf.Close()
	f.InUse = lockedElsewhere(sf, lockInUse, 1)
	r, rest, mf, err := c.readRecord(s.key)
	if err != nil {
		f.Damaged = !f.InUse // it may just be being made
		return f
	}
	defer mf.Close()
	f.Name, f.Size = r.Name, r.Size
	for i := range r.Parts {
		f.Data += r.Parts[i].Length
	}
	f.Local, f.Verified, err = presence(sf, s.key, &r, rest)
	if info, statErr := c.root.Lstat(path.Join(dirFiles, s.key+".data")); err == nil && statErr == nil && info.Size() == r.Size {
		f.Damaged = false
	}
	return f
}

// presence adds up the words of a state file. Only the granules of a packed
// file need its map, the rest of the record.
func presence(sf io.ReaderAt, key string, r *record, rest io.Reader) (local int64, verified bool, err error) {
	var m *sparse.Map
	if len(r.Parts) == 1 && r.Parts[0].Encoding == layout.Packed.String() {
		if m, err = readMap(rest, r.Size); err != nil {
			return 0, false, errors.Join(errDamaged, err)
		}
	}
	g := r.grid(r.layout(m))
	want := header(key, g.pieces())
	head := make([]byte, len(want))
	if _, err := sf.ReadAt(head, 0); err != nil || !bytes.Equal(head, want) {
		return 0, false, errDamaged
	}
	verified = true
	words := bufio.NewReaderSize(io.NewSectionReader(sf, stateHeader, 8*int64(g.pieces())), 64<<10)
	var word [8]byte
	for i := range g.pieces() {
		if _, err := io.ReadFull(words, word[:]); err != nil {
			return 0, false, errors.Join(errDamaged, err)
		}
		word := binary.LittleEndian.Uint64(word[:])
		if word&wordPresent != 0 {
			_, n := g.extent(i)
			local += n
		}
		verified = verified && word&(wordPresent|wordVerified|wordSuspect) == wordPresent|wordVerified
	}
	return local, verified, nil
}

// ref is a record of dirRefs, and what it costs.
type ref struct {
	refRecord
	name string // below the cache's directory
	disk int64
	used time.Time
}

// refs reads all records of dirRefs that can be read.
func (c *Cache) refs() ([]ref, error) {
	var all []ref
	err := c.eachSmall(dirRefs, func(name string, info fs.FileInfo) {
		if r, err := c.readRef(name); err == nil {
			all = append(all, ref{r, name, blocks(info), info.ModTime()})
		}
	})
	return all, err
}

// eachSmall calls do for each file of a directory, but for those that are
// being written.
func (c *Cache) eachSmall(d string, do func(name string, info fs.FileInfo)) error {
	dir, err := c.root.Open(d)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.Contains(name, tmpMark) {
			continue
		}
		name = path.Join(d, name)
		if info, err := c.root.Lstat(name); err == nil && info.Mode().IsRegular() {
			do(name, info)
		}
	}
	return nil
}

// artifacts makes one of each record that names an artifact by its digest,
// with the tags that lead there.
func artifacts(refs []ref) []StoredArtifact {
	var all []StoredArtifact
	for _, r := range refs {
		if len(r.Blobs) == 0 {
			continue
		}
		a := StoredArtifact{Reference: r.Reference, Digest: r.Digest, Used: r.used, blobs: r.Blobs}
		for _, f := range r.Files {
			a.Files = append(a.Files, ArtifactFile(f))
		}
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
