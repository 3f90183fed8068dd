package cache

import (
	"cmp"
	"context"
	"encoding/binary"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// A granule that another cached file has is copied from there. Snapshots of
// one VM have most granules in common, and at the same place: so the granule
// at the same place of files with the same title is looked at first, then any
// granule with the same digest.

const (
	// mostPeers bounds the files that granules of one file are copied from.
	mostPeers = 4
	// mostBySum bounds the granules of a peer that are found by digest: 32
	// GiB in granules of 32 KiB. A larger peer is looked at by place alone.
	mostBySum = 1 << 20
)

// peer is a packed file in the cache.
type peer struct {
	key     string
	name    string // its title
	granule int64
	used    time.Time
}

// peers returns the keys of packed files that may share granules with e, as
// far as they are known after so long: those of the same title first, and of
// these the last used.
func (c *Cache) peers(e *entry, most time.Duration) (keys []string) {
	ready, began := c.index.make(c)
	if ready == nil {
		return nil
	}
	await(e.ctx, ready, most-time.Since(began))
	c.index.mu.Lock()
	all := slices.Clone(c.index.packed)
	c.index.mu.Unlock()
	all = slices.DeleteFunc(all, func(p peer) bool {
		return p.key == e.key || p.granule != e.file.Index.Head.Granule
	})
	other := func(p peer) int {
		if p.name == e.file.Name {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b peer) int { return cmp.Or(other(a)-other(b), b.used.Compare(a.used)) })
	for _, p := range all[:min(len(all), mostPeers)] {
		keys = append(keys, p.key)
	}
	return keys
}

// peerIndex returns the index of a cached file with that record, all of which
// is read from the cache. A section that is not there is fs.ErrNotExist. It
// is nil if the head is not there.
func (c *Cache) peerIndex(r *record) *layout.Index {
	p, x := &r.Parts[0], r.Index
	if x == nil {
		return nil
	}
	frame, err := c.Blob(x.Head)
	if err != nil {
		return nil
	}
	head, err := packed.ReadHead(frame, packed.File{Size: r.Size, Data: p.Length, Granule: p.PieceSize, Frames: x.Size - int64(len(frame))})
	if err != nil {
		return nil
	}
	return layout.NewIndex(p.Digest, x.Size, x.Head, head, func(_ context.Context, _, n int64, sum packed.Sum) ([]byte, error) {
		frame, err := c.Blob(layout.DigestOf(sum))
		if err == nil && int64(len(frame)) != n {
			err = fs.ErrNotExist
		}
		return frame, err
	})
}

// copyGranules fills those of granules [from, to) that a peer has. keep gets
// each.
func (e *entry) copyGranules(ctx context.Context, from, to int, most time.Duration, keep keepFunc) {
	for _, key := range e.cache.peers(e, most) {
		if e.state.hasAll(from, to) {
			return
		}
		d, back := e.borrow(key, most)
		if d == nil {
			continue
		}
		if d.file.Index != nil && d.file.Index.HeadDigest != "" {
			e.copyFrom(ctx, d, from, to, keep)
		}
		back()
	}
}

func (e *entry) copyFrom(ctx context.Context, d *entry, from, to int, keep keepFunc) {
	buf := getBuffer(e.file.Index.Head.Granule)
	defer putBuffer(buf)
	for i := from; i < to; i++ {
		if e.state.has(i) || !e.wants(i) {
			continue
		}
		want, err := e.file.Index.Granule(ctx, i)
		if err != nil {
			return // the fetch will say so
		}
		j, ok := d.granuleLike(ctx, e.file.Index.Slot(i), want.Sum)
		if !ok || d.state.word(j)&wordVerified == 0 {
			continue
		}
		_, n := e.grid.extent(i)
		if _, theirs := d.grid.extent(j); theirs != n {
			continue // no two lengths have one digest
		}
		word, err := d.readKept(j, buf[:n])
		switch {
		case err == nil:
			e.cache.counts.copied.Add(n)
			keep(i, buf[:n], true, d.cloneOf(j, word))
		case word&wordPresent != 0 && word&wordSuspect == 0:
			d.discard(j, j+1, found{by: byCopy, cause: err, word: word})
		}
	}
}

// granuleLike returns the granule of a peer that has the given sum: the one in
// that slot, or any.
func (d *entry) granuleLike(ctx context.Context, slot int64, sum packed.Sum) (i int, ok bool) {
	x := d.file.Index
	if i = x.Rank(slot); i < x.Granules() && x.Slot(i) == slot {
		if g, err := x.Granule(ctx, i); err == nil && g.Sum == sum {
			return i, true
		}
	}
	if i, ok = d.granules.find(ctx, x, sum); !ok {
		return 0, false
	}
	g, err := x.Granule(ctx, i)
	return i, err == nil && g.Sum == sum
}

// bySum finds granules by digest.
type bySum struct {
	once sync.Once
	sums map[uint64]int32 // by the first bytes of the digest
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

// clone is a piece of another file whose blocks a copy may share.
type clone struct {
	from *entry
	off  int64 // in its data file
	n    int64
	i    int
	word uint64 // of the piece; what is cloned is right only while it has that
}

// cloneOf returns where piece i lies if it is one stretch that begins at a
// block, else nil.
func (d *entry) cloneOf(i int, word uint64) *clone {
	s := d.stretch(i, i+1)
	_, n := d.grid.extent(i)
	if s.n != n || s.off%pageSize != 0 || n%pageSize != 0 {
		return nil
	}
	return &clone{from: d, off: s.off, n: n, i: i, word: word}
}

// into shares the piece's blocks with dst at off. It reports whether the file
// system can do that.
func (c *clone) into(dst *os.File, off int64) bool {
	if c == nil || off%pageSize != 0 {
		return false
	}
	err := unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.from.data.Fd()), Src_offset: uint64(c.off), Src_length: uint64(c.n), Dest_offset: uint64(off),
	})
	return err == nil && c.from.state.word(c.i) == c.word
}
