package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Finding is something of the cache that was not as it had been kept.
type Finding struct {
	Key    string // of the cached file; "" for a small blob
	Name   string // of the file, or the blob's digest
	Offset int64  // in the file, where the first wrong byte of data may be
	Length int64  // bytes of data that were dropped and will be fetched again
	Digest string // of the blob that holds them
	What   string // in words
	InUse  bool   // a process has the file open
}

// Verification is what Verify has looked at. Sizes are in bytes.
type Verification struct {
	Files  int   // cached files
	Bytes  int64 // of their data that was read
	Hashed int64 // of Bytes, compared with a digest of the artifact too
	Lost   int64 // not on disk any more after a crash of the machine, which nobody had believed
	Wrong  []Finding
}

// Verify reads everything that is present and compares it with what was
// kept: each piece with its checksum, and each stored blob that is
// complete and not compressed with its digest. What is wrong is marked
// missing, so that it is fetched again, and a file that cannot be read at
// all is removed; both are told in the result. onBytes is told how much
// was read. When ctx ends, the result so far comes with its error.
func (c *Cache) Verify(ctx context.Context, onBytes func(int64)) (Verification, error) {
	var v Verification
	files, _ := c.usage()
	for _, s := range files {
		if err := c.verifyFile(ctx, s.key, &v, onBytes); err != nil {
			return v, err
		}
	}
	return v, c.verifySmall(&v)
}

// verifyFile looks at one cached file, which nobody evicts meanwhile.
func (c *Cache) verifyFile(ctx context.Context, key string, v *Verification, onBytes func(int64)) error {
	d, err := c.openStored(key)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errDamaged):
		return c.removeDamaged(key, err, v)
	case err != nil:
		return err
	}
	d.ctx = ctx
	v.Files++
	s := scrub{entry: &d.entry, v: v, onBytes: onBytes, inUse: lockedElsewhere(d.state.file, lockInUse, 1)}
	if !s.inUse { // the disk is asked, not the kernel's memory of it
		_ = unix.Fadvise(int(d.data.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	for part := range d.file.Parts {
		if err = s.part(part); err != nil {
			break
		}
	}
	d.closeFiles()
	if err == nil && s.doubtful {
		if err = c.remove(key); errors.Is(err, errInUse) {
			err = nil // what was wrong of it is marked missing
		}
	}
	return err
}

// openStored opens a cached file as a donor, and tells why if it cannot.
func (c *Cache) openStored(key string) (*donor, error) {
	d, err := c.donorOf(key)
	if err != nil {
		return nil, err
	}
	err = d.openToRead(lock)
	if err == nil && d.state.readOnly {
		err = fmt.Errorf("what is wrong could not be dropped: %w", unix.EROFS)
	}
	if err != nil {
		d.closeFiles()
		return nil, err
	}
	info, err := d.data.Stat()
	if err == nil && (info.Size() != d.file.Size() || d.file.Map.DataSize() != partsSize(d.file)) {
		err = errDamaged
	}
	if err != nil {
		d.closeFiles()
		return nil, err
	}
	return d, nil
}

// partsSize is the payload that a file's parts make.
func partsSize(f *layout.File) int64 {
	if len(f.Parts) == 0 {
		return 0
	}
	return f.Parts[len(f.Parts)-1].End()
}

// removeDamaged removes a file that cannot be read, unless somebody has it
// open: then it is being made, or its user has found it good. One that a
// process had only begun to make is nothing to tell of.
func (c *Cache) removeDamaged(key string, why error, v *Verification) error {
	name := path.Join(dirFiles, key)
	data, err := c.root.Lstat(name + ".data")
	begun := (err != nil || blocks(data) == 0) && c.missing(name+".meta")
	if err != nil && c.missing(name+".state") {
		return c.unlink(name + ".meta") // evicted meanwhile
	}
	err = c.remove(key)
	if errors.Is(err, errInUse) {
		return nil
	}
	if err == nil && !begun {
		v.Files++
		v.Wrong = append(v.Wrong, Finding{Key: key, Name: key, What: "cannot be read as a cached file (" + why.Error() + "); removed"})
	}
	return err
}

func (c *Cache) missing(name string) bool {
	_, err := c.root.Lstat(name)
	return errors.Is(err, fs.ErrNotExist)
}

// scrub is the look at one file.
type scrub struct {
	*entry
	v       *Verification
	onBytes func(int64)
	inUse   bool

	doubtful bool // its record may be wrong
}

// part looks at a part piece by piece, and at the part as a whole where
// that can be done.
func (s *scrub) part(part int) error {
	first, end := s.grid.first[part], s.grid.first[part+1]
	p := &s.file.Parts[part]
	var whole hash.Hash
	if p.Encoding == layout.Raw && s.state.hasAll(first, end) {
		whole = sha256.New()
	}
	for i := first; i < end; i++ {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		ok, err := s.piece(i, whole)
		if err != nil {
			return err
		}
		if !ok {
			whole = nil
		}
	}
	if whole == nil {
		return nil
	}
	s.v.Hashed += p.Length
	if "sha256:"+hex.EncodeToString(whole.Sum(nil)) != p.Digest {
		// Its pieces are what they were when they were kept. So they were
		// wrong then, or the record is now.
		s.doubtful = true
		s.discard(first, end, found{by: byVerify, cause: s.wrong(part, "whole")})
		s.found(p.Offset, p.Length, part, "a blob does not have its digest")
	}
	return nil
}

// piece compares a piece with its checksum, and feeds it to whole. It
// reports whether the piece is there and as it was kept.
func (s *scrub) piece(i int, whole hash.Hash) (bool, error) {
	off, n := s.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	word, err := s.readKept(i, buf)
	switch {
	case errors.Is(err, errGone):
		return false, nil
	case err == nil:
		s.state.settle(i, word)
		s.v.Bytes += n
		s.onBytes(n)
		if whole != nil {
			whole.Write(buf)
		}
		return true, nil
	case word&wordSuspect != 0:
		s.onBytes(n)
		s.v.Lost += n
		s.state.settle(i, ^word)
		return false, nil
	}
	if s.discard(i, i+1, found{by: byVerify, cause: err, word: word}) == 0 {
		return false, nil // somebody else has seen to it
	}
	s.onBytes(n)
	what := "bytes on disk have changed"
	if !errors.Is(err, errNotAsKept) {
		what = "cannot be read: " + err.Error()
	}
	s.found(off, n, s.grid.part(i), what)
	return false, nil
}

// found notes wrong payload [off, off+n). Neighbours become one finding.
func (s *scrub) found(off, n int64, part int, what string) {
	f := Finding{Key: s.key, Name: s.file.Name, Length: n, Digest: s.file.Parts[part].Digest, What: what + "; dropped", InUse: s.inUse}
	for run := range s.file.Map.Payload(off, 1) {
		f.Offset = run.Offset
	}
	if all := s.v.Wrong; len(all) > 0 {
		last := &all[len(all)-1]
		if last.Key == f.Key && last.What == f.What && last.Digest == f.Digest && s.file.Map.PayloadAt(last.Offset)+last.Length == off {
			last.Length += n
			return
		}
	}
	s.v.Wrong = append(s.v.Wrong, f)
}

// verifySmall looks at manifests, config blobs and references.
func (c *Cache) verifySmall(v *Verification) error {
	var errs []error
	drop := func(name, what string) {
		if err := c.unlink(name); err != nil {
			errs = append(errs, err)
			return
		}
		v.Wrong = append(v.Wrong, Finding{Name: name, What: what + "; removed"})
	}
	err := c.eachSmall(dirBlobs, func(name string, info fs.FileInfo) {
		data, err := c.readFile(name)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if sum := sha256.Sum256(data); err != nil || hex.EncodeToString(sum[:]) != path.Base(name) {
			drop(name, "a blob does not have its digest")
			return
		}
		v.Bytes += info.Size()
		v.Hashed += info.Size()
	})
	errs = append(errs, err, c.eachSmall(dirRefs, func(name string, _ fs.FileInfo) {
		data, err := c.readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if _, ok := parseRef(name, data); err != nil || !ok {
			drop(name, "a reference cannot be read")
		}
	}))
	return errors.Join(errs...)
}
