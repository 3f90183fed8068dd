package cache

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// index knows which cached files hold a part with a given digest, so that
// what another file has is copied and not downloaded. It is read when it is
// first asked, while nobody is kept waiting for long, and learns of files that
// this process opens later.
type index struct {
	ctx    context.Context
	dir    *disk.Dir
	before func(work string)

	mu    sync.Mutex    // never held over I/O
	ready chan struct{} // closed when it was read; nil: nobody has asked
	began time.Time
	ended bool // the cache is closed
	keys  map[string]bool
	parts map[string][]partOf // by digest

	packed []packedFile
}

// partOf is a part of a cached file.
type partOf struct {
	key    string
	part   int
	length int64
}

// packedFile is a packed file in the cache.
type packedFile struct {
	key     string
	name    string // its title
	granule int64
	used    time.Time
}

const (
	// mostCopies bounds how many copies of one part are remembered. Chunks of
	// zeros may occur thousands of times.
	mostCopies = 4
	// mostPeers bounds the files that granules of one file are copied from.
	mostPeers = 4
)

// add adds a cached file with that record.
func (x *index) add(key string, r *disk.Record, used time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ready == nil || x.keys[key] {
		return // it will be found on disk, or was
	}
	x.keys[key] = true
	if r.Index != nil {
		x.packed = append(x.packed, packedFile{key, r.Name, r.Parts[0].PieceSize, used})
	}
	for i := range r.Parts {
		p := &r.Parts[i]
		if copies := x.parts[p.Digest]; len(copies) < mostCopies && p.Length > 0 {
			x.parts[p.Digest] = append(copies, partOf{key, i, p.Length})
		}
	}
}

// note remembers a part that has just come as the first copy to look at.
func (x *index) note(e *entry, part int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ready == nil {
		return
	}
	p := &e.file.Parts[part]
	copies := x.parts[p.Digest]
	if len(copies) == mostCopies {
		copies = copies[:mostCopies-1]
	}
	x.parts[p.Digest] = append([]partOf{{e.disk.Key, part, p.Length}}, copies...)
}

// find returns where else a part of e may be found, as far as that is known
// after most.
func (x *index) find(e *entry, part int, most time.Duration) []partOf {
	if !x.await(e.ctx, most) {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var found []partOf
	for _, p := range x.parts[e.file.Parts[part].Digest] {
		own := p.key == e.disk.Key && p.part == part
		if !own && p.length == e.file.Parts[part].Length {
			found = append(found, p)
		}
	}
	return found
}

// findPacked returns the keys of packed files that may share granules with e,
// as far as they are known after most: those of the same title first, and of
// these the last used.
func (x *index) findPacked(e *entry, most time.Duration) (keys []string) {
	if !x.await(e.ctx, most) {
		return nil
	}
	x.mu.Lock()
	all := slices.Clone(x.packed)
	x.mu.Unlock()
	all = slices.DeleteFunc(all, func(p packedFile) bool {
		return p.key == e.disk.Key || p.granule != e.file.Index.Head.Granule
	})
	other := func(p packedFile) int {
		if p.name == e.file.Name {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b packedFile) int { return cmp.Or(other(a)-other(b), b.used.Compare(a.used)) })
	for _, p := range all[:min(len(all), mostPeers)] {
		keys = append(keys, p.key)
	}
	return keys
}

// await has the index read, once, and waits for that, but not longer than most
// from when it began. It reports false if there is no index.
func (x *index) await(ctx context.Context, most time.Duration) bool {
	x.mu.Lock()
	if x.ready == nil && !x.ended {
		x.ready, x.began = make(chan struct{}), time.Now()
		x.keys, x.parts = map[string]bool{}, map[string][]partOf{}
		go x.read(x.ready)
	}
	ready, began := x.ready, x.began
	x.mu.Unlock()
	if ready == nil {
		return false
	}
	quota.Await(ctx, ready, most-time.Since(began))
	return true
}

// close waits for the index that is being read.
func (x *index) close() {
	x.mu.Lock()
	x.ended = true
	ready := x.ready
	x.mu.Unlock()
	if ready != nil {
		<-ready
	}
}

// read reads what every file in the cache is made of. What cannot be read is
// not copied from.
func (x *index) read(ready chan struct{}) {
	defer close(ready)
	x.before("index")
	names, _ := x.dir.Names(disk.Files) // as many as there are
	for _, name := range names {
		key, ok := strings.CutSuffix(name, ".meta")
		if !ok {
			continue
		}
		if x.ctx.Err() != nil {
			return
		}
		if r, err := x.dir.Record(key); err == nil {
			x.add(key, r, x.dir.LastUsed(key))
		}
	}
}
