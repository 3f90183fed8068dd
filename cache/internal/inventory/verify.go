package inventory

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

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
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

// Verification is what Verify has read and found. Sizes are in bytes.
type Verification struct {
	Files  int   // cached files
	Bytes  int64 // of their data that was read
	Hashed int64 // of Bytes, compared with a digest of the artifact too
	Lost   int64 // not on disk any more after a crash of the machine, which nobody had believed
	Wrong  []Finding
}

// Verify reads everything that is present, and compares each piece with its
// checksum, and each stored blob that is complete and not compressed with its
// digest. Wrong pieces become missing, so that they are fetched again, and a
// file that cannot be read at all is removed; both are in the result. onBytes is called with the bytes
// that were read. When ctx ends, Verify returns the result so far with the
// error of ctx.
func Verify(ctx context.Context, d *disk.Dir, onBytes func(int64)) (Verification, error) {
	var v Verification
	files, _ := d.Usage()
	for _, s := range files {
		if err := verifyFile(ctx, d, s.Key, &v, onBytes); err != nil {
			return v, err
		}
	}
	return v, verifySmall(d, &v)
}

// verifyFile compares one cached file, which nobody evicts meanwhile.
func verifyFile(ctx context.Context, d *disk.Dir, key string, v *Verification, onBytes func(int64)) error {
	f, err := openStored(d, key)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, disk.ErrDamaged):
		return removeDamaged(d, key, err, v)
	case err != nil:
		return err
	}
	v.Files++
	// The disk is asked, not the kernel's memory of it.
	s := scrub{ctx: ctx, file: f, v: v, onBytes: onBytes, inUse: f.Forget()}
	for part := range f.Layout.Parts {
		if err = s.part(part); err != nil {
			break
		}
	}
	f.Close()
	if err == nil && s.doubtful {
		if err = d.Remove(key); errors.Is(err, disk.ErrInUse) {
			err = nil // what was wrong of it is marked missing
		}
	}
	return err
}

// openStored opens a cached file by what its record describes.
func openStored(d *disk.Dir, key string) (*disk.File, error) {
	l, g, err := d.Layout(key)
	if err != nil {
		return nil, err
	}
	f, err := d.Open(key, l, g, disk.Inspect, nil)
	if err != nil {
		return nil, err
	}
	switch {
	case f.ReadOnly():
		err = fmt.Errorf("what is wrong could not be dropped: %w", unix.EROFS)
	case l.Map.DataSize() != partsSize(l):
		err = disk.ErrDamaged
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

// partsSize returns the bytes of payload that a file's parts make.
func partsSize(f *layout.File) int64 {
	if len(f.Parts) == 0 {
		return 0
	}
	return f.Parts[len(f.Parts)-1].End()
}

// removeDamaged removes a file that cannot be read, unless somebody has it
// open: then it is being made, or its user has found it good. One that a
// process had only begun to make is no finding.
func removeDamaged(d *disk.Dir, key string, why error, v *Verification) error {
	name := path.Join(disk.Files, key)
	data, err := d.Stat(name + ".data")
	begun := (err != nil || disk.Blocks(data) == 0) && d.Missing(name+".meta")
	if err != nil && d.Missing(name+".state") {
		return d.Unlink(name + ".meta") // evicted meanwhile
	}
	err = d.Remove(key)
	if errors.Is(err, disk.ErrInUse) {
		return nil
	}
	if err == nil && !begun {
		v.Files++
		v.Wrong = append(v.Wrong, Finding{Key: key, Name: key, What: "cannot be read as a cached file (" + why.Error() + "); removed"})
	}
	return err
}

// scrub is the comparison of one file.
type scrub struct {
	ctx     context.Context
	file    *disk.File
	v       *Verification
	onBytes func(int64)
	inUse   bool

	doubtful bool // its record may be wrong
}

// part compares a part piece by piece, and as a whole if that can be done.
func (s *scrub) part(part int) error {
	first, end := s.file.Grid.Of(part)
	p := &s.file.Layout.Parts[part]
	var whole hash.Hash
	if p.Encoding == layout.Raw && s.file.State.HasAll(first, end) {
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
	if digests.OfHash(whole) != p.Digest {
		// Its pieces are what they were when they were kept. So they were
		// wrong then, or the record is now.
		s.doubtful = true
		s.file.Discard(first, end, disk.Found{By: disk.ByVerify, Cause: fmt.Errorf("%q, blob %s, whole: digest does not agree: %w",
			s.file.Layout.Name, p.Digest, layout.ErrContent)})
		s.found(p.Offset, p.Length, part, "a blob does not have its digest")
	}
	return nil
}

// piece compares a piece with its checksum, and feeds it to whole. It
// reports whether the piece is there and as it was kept.
func (s *scrub) piece(i int, whole hash.Hash) (bool, error) {
	off, n := s.file.Grid.Extent(i)
	buf := buffers.Get(n)
	defer buffers.Put(buf)
	word, err := s.file.LoadAsKept(i, buf)
	switch {
	case errors.Is(err, disk.ErrGone):
		return false, nil
	case err == nil:
		s.file.State.Settle(i, uint64(word))
		s.v.Bytes += n
		s.onBytes(n)
		if whole != nil {
			whole.Write(buf)
		}
		return true, nil
	case word.Suspect():
		s.onBytes(n)
		s.v.Lost += n
		s.file.State.Settle(i, uint64(^word))
		return false, nil
	}
	if s.file.Discard(i, i+1, disk.Found{By: disk.ByVerify, Cause: err, Word: word}) == 0 {
		return false, nil // somebody else has seen to it
	}
	s.onBytes(n)
	what := "bytes on disk have changed"
	if !errors.Is(err, disk.ErrNotAsKept) {
		what = "cannot be read: " + err.Error()
	}
	s.found(off, n, s.file.Grid.Part(i), what)
	return false, nil
}

// found notes wrong payload [off, off+n). Neighbours become one finding.
func (s *scrub) found(off, n int64, part int, what string) {
	f := Finding{Key: s.file.Key, Name: s.file.Layout.Name, Length: n, Digest: s.file.Layout.Parts[part].Digest, What: what + "; dropped", InUse: s.inUse}
	for run := range s.file.Layout.Map.Payload(off, 1) {
		f.Offset = run.Offset
	}
	if all := s.v.Wrong; len(all) > 0 {
		last := &all[len(all)-1]
		if last.Key == f.Key && last.What == f.What && last.Digest == f.Digest && s.file.Layout.Map.PayloadAt(last.Offset)+last.Length == off {
			last.Length += n
			return
		}
	}
	s.v.Wrong = append(s.v.Wrong, f)
}

// verifySmall compares manifests, config blobs and references.
func verifySmall(d *disk.Dir, v *Verification) error {
	var errs []error
	drop := func(name, what string) {
		if err := d.Unlink(name); err != nil {
			errs = append(errs, err)
			return
		}
		v.Wrong = append(v.Wrong, Finding{Name: name, What: what + "; removed"})
	}
	err := eachSmall(d, disk.Blobs, func(name string, info fs.FileInfo) {
		data, err := d.ReadFile(name)
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
	errs = append(errs, err, eachSmall(d, disk.Refs, func(name string, _ fs.FileInfo) {
		data, err := d.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if _, ok := parseRef(name, data); err != nil || !ok {
			drop(name, "a reference cannot be read")
		}
	}))
	return errors.Join(errs...)
}
