package cache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// keepFunc takes the payload of a piece, which is its own until it returns.
// from is where the bytes lie in another file, if its blocks may be shared,
// else nil.
type keepFunc func(i int, payload []byte, verified bool, from *disk.Clone)

// copyPieces calls keep with those of pieces [from, to) of a part that another
// cached file holds, or the same file elsewhere. Which those are may not be
// known, or not be at hand, for longer than most: then they are left out.
func (ps *peers) copyPieces(part, from, to int, most time.Duration, keep keepFunc) {
	e := ps.entry
	if e.file.Index != nil {
		ps.copyGranules(e.ctx, from, to, most, keep)
		return
	}
	for _, p := range e.cache.index.find(e, part, most) {
		if e.state.HasAll(from, to) {
			return
		}
		b, back := ps.borrow(p.key, most)
		if b == nil {
			continue
		}
		theirs := peerPart{file: b.file, part: p.part, piece: -1}
		for i := from; i < to; i++ {
			if !e.state.Has(i) && ps.wants(i) {
				ps.copyPiece(part, i, &theirs, keep)
			}
		}
		buffers.Put(theirs.buf)
		back()
	}
}

// wants reports whether somebody takes piece i, if it is copied: it is kept,
// or waited for.
func (ps *peers) wants(i int) bool {
	e := ps.entry
	return !e.unkept() || e.link == nil || e.flights.flying(i, i+1)
}

// copyPiece copies piece i from another file's form of the same part,
// which may be cut into other pieces.
func (ps *peers) copyPiece(part, i int, p *peerPart, keep keepFunc) {
	e := ps.entry
	off, n := e.grid.Extent(i)
	buf := buffers.Get(n)
	defer buffers.Put(buf)
	verified, ok := p.read(buf, off-e.file.Parts[part].Offset)
	if !ok {
		return
	}
	if !verified {
		var err error
		if verified, err = e.checkPiece(i, buf); err != nil {
			return
		}
		if e.grid.Whole(part) && !verified {
			// A frame's digest is not over its payload.
			if e.file.Parts[part].Encoding != layout.Raw {
				return
			}
			if digests.Format(sha256.Sum256(buf)) != e.file.Parts[part].Digest {
				p.refute()
				return
			}
			verified = true
		}
	}
	if !verified && p.file != e.disk {
		return // another source may have sent it
	}
	keep(i, buf, verified, nil)
}

// peerPart reads a part of another cached file. It compares each piece that it
// takes from with its checksum.
type peerPart struct {
	file  *disk.File
	part  int
	piece int       // the piece in buf; -1: none
	word  disk.Word // its word
	buf   []byte
}

// read fills p from the part's offset off on. It reports whether all of it
// was verified, and whether all of it was there and as it was kept.
func (d *peerPart) read(p []byte, off int64) (verified, ok bool) {
	verified = true
	g := d.file.Grid
	for len(p) > 0 {
		i := g.First[d.part] + int(off/g.Size[d.part])
		if !d.load(i) {
			return false, false
		}
		verified = verified && d.word&disk.WordVerified != 0
		n := copy(p, d.buf[off%g.Size[d.part]:])
		p, off = p[n:], off+int64(n)
	}
	return verified, true
}

func (d *peerPart) load(i int) bool {
	if i == d.piece {
		return true
	}
	d.piece = -1
	_, n := d.file.Grid.Extent(i)
	if int64(cap(d.buf)) < n {
		buffers.Put(d.buf)
		d.buf = buffers.Get(n)
	}
	d.buf = d.buf[:n]
	var err error
	if d.word, err = d.file.LoadAsKept(i, d.buf); err == nil {
		d.piece = i
		return true
	}
	if errors.Is(err, disk.ErrNotAsKept) && d.word&disk.WordSuspect == 0 {
		d.file.Discard(i, i+1, disk.Found{By: disk.ByCopy, Cause: err, Word: d.word})
	}
	return false
}

// refute discards what no digest has vouched for of a part that does not have
// its digest.
func (d *peerPart) refute() {
	for i := d.file.Grid.First[d.part]; i < d.file.Grid.First[d.part+1]; i++ {
		if word := d.file.State.Word(i); word.Readable() && !word.Verified() {
			d.file.Discard(i, i+1, disk.Found{By: disk.ByCopy, Word: word})
		}
	}
}

// A granule that another cached file has is copied from there. Snapshots of
// one VM have most granules in common, and at the same place: so the granule
// at the same place of files with the same title comes first, then any granule
// with the same digest.

// copyGranules calls keep with those of granules [from, to) that a peer has.
func (ps *peers) copyGranules(ctx context.Context, from, to int, most time.Duration, keep keepFunc) {
	e := ps.entry
	for _, key := range e.cache.index.findPacked(e, most) {
		if e.state.HasAll(from, to) {
			return
		}
		b, back := ps.borrow(key, most)
		if b == nil {
			continue
		}
		if x := b.file.Layout.Index; x != nil && x.HeadDigest != "" {
			ps.copyGranulesOf(ctx, b, from, to, keep)
		}
		back()
	}
}

func (ps *peers) copyGranulesOf(ctx context.Context, b *borrowed, from, to int, keep keepFunc) {
	e, f := ps.entry, b.file
	buf := buffers.Get(e.file.Index.Head.Granule)
	defer buffers.Put(buf)
	for i := from; i < to; i++ {
		if e.state.Has(i) || !ps.wants(i) {
			continue
		}
		want, err := e.file.Index.Granule(ctx, i)
		if err != nil {
			return // the fetch fails with that
		}
		j, ok := b.sums.like(ctx, f.Layout.Index, e.file.Index.Slot(i), want.Sum)
		if !ok || f.State.Word(j)&disk.WordVerified == 0 {
			continue
		}
		_, n := e.grid.Extent(i)
		if _, theirs := f.Grid.Extent(j); theirs != n {
			continue // no two lengths have one digest
		}
		word, err := f.LoadAsKept(j, buf[:n])
		switch {
		case err == nil:
			e.cache.counts.copied.Add(n)
			keep(i, buf[:n], true, f.CloneOf(j, word))
		case word.Readable():
			f.Discard(j, j+1, disk.Found{By: disk.ByCopy, Cause: err, Word: word})
		}
	}
}

// mostBySum bounds the granules of a peer that are found by digest: 32 GiB in
// granules of 32 KiB. In a larger peer a granule is found at its place alone.
const mostBySum = 1 << 20

// bySum finds granules of a peer by digest.
type bySum struct {
	once sync.Once
	sums map[uint64]int32 // by the first bytes of the digest
}

// like returns the granule of a peer with index x that has the given sum: the
// one in that slot, or any.
func (b *bySum) like(ctx context.Context, x *layout.Index, slot int64, sum packed.Sum) (i int, ok bool) {
	if i = x.Rank(slot); i < x.Granules() && x.Slot(i) == slot {
		if g, err := x.Granule(ctx, i); err == nil && g.Sum == sum {
			return i, true
		}
	}
	if i, ok = b.find(ctx, x, sum); !ok {
		return 0, false
	}
	g, err := x.Granule(ctx, i)
	return i, err == nil && g.Sum == sum
}

func (b *bySum) find(ctx context.Context, x *layout.Index, sum packed.Sum) (i int, ok bool) {
	if x.Granules() > mostBySum {
		return 0, false
	}
	b.once.Do(func() {
		b.sums = make(map[uint64]int32, x.Granules())
		i := 0
		for _, ref := range x.Head.Sections {
			s, err := x.Section(ctx, ref.Number)
			if err != nil {
				i += ref.Granules // what is not in the cache is not found
				continue
			}
			for _, g := range s.All() {
				b.sums[binary.LittleEndian.Uint64(g.Sum[:])] = int32(i)
				i++
			}
		}
	})
	n, ok := b.sums[binary.LittleEndian.Uint64(sum[:])]
	return int(n), ok
}
