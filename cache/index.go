package cache

import (
	"path"
	"strings"
	"sync"
	"time"
)

// index knows which cached files hold a part with a given digest, so that
// what another file has is copied and not downloaded. It is made when it
// is first asked, while nobody is kept waiting for long, and learns of files
// that this process opens later.
type index struct {
	mu    sync.Mutex    // never held over I/O
	ready chan struct{} // closed when it is made; nil: nobody has asked
	began time.Time
	ended bool // the cache is closed
	keys  map[string]bool
	parts map[string][]place

	packed []peer
}

// place is a part of a cached file.
type place struct {
	key    string
	first  int // the part's first piece in that file
	length int64
}

// mostPlaces bounds how many copies of one part are remembered. Chunks of
// zeros may occur thousands of times.
const mostPlaces = 4

func (x *index) add(key string, r *record, used time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ready == nil || x.keys[key] {
		return // it will be found on disk, or was
	}
	x.keys[key] = true
	if r.Index != nil {
		x.packed = append(x.packed, peer{key, r.Name, r.Parts[0].PieceSize, used})
	}
	first := 0
	for i := range r.Parts {
		p := &r.Parts[i]
		if places := x.parts[p.Digest]; len(places) < mostPlaces && p.Length > 0 {
			x.parts[p.Digest] = append(places, place{key, first, p.Length})
		}
		first += p.pieces()
	}
}

// note remembers a part that has just come as the first place to look.
func (x *index) note(e *entry, part int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ready == nil {
		return
	}
	p := &e.file.Parts[part]
	places := x.parts[p.Digest]
	if len(places) == mostPlaces {
		places = places[:mostPlaces-1]
	}
	here := place{e.key, e.grid.first[part], p.Length}
	x.parts[p.Digest] = append([]place{here}, places...)
}

// places returns where else the part may be found, as far as that is known
// after so long.
func (c *Cache) places(e *entry, part int, most time.Duration) []place {
	x := &c.index
	ready, began := x.make(c)
	if ready == nil {
		return nil
	}
	await(e.ctx, ready, most-time.Since(began))
	x.mu.Lock()
	defer x.mu.Unlock()
	var found []place
	for _, p := range x.parts[e.file.Parts[part].Digest] {
		own := p.key == e.key && p.first == e.grid.first[part]
		if !own && p.length == e.file.Parts[part].Length {
			found = append(found, p)
		}
	}
	return found
}

// make has the index made, once; nil where there will be none.
func (x *index) make(c *Cache) (ready <-chan struct{}, began time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ready == nil && !x.ended {
		x.ready, x.began = make(chan struct{}), time.Now()
		x.keys, x.parts = map[string]bool{}, map[string][]place{}
		go func(ready chan struct{}) {
			defer close(ready)
			c.readIndex()
		}(x.ready)
	}
	return x.ready, x.began
}

// end waits for the index that is being made.
func (x *index) end() {
	x.mu.Lock()
	x.ended = true
	ready := x.ready
	x.mu.Unlock()
	if ready != nil {
		<-ready
	}
}

// readIndex reads what every file in the cache is made of. What cannot be
// read donates nothing.
func (c *Cache) readIndex() {
	c.opts.before("index")
	dir, err := c.root.Open(dirFiles)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // as many as there are
	for _, name := range names {
		key, ok := strings.CutSuffix(name, ".meta")
		if !ok {
			continue
		}
		if c.ctx.Err() != nil {
			return
		}
		r, _, f, err := c.readRecord(key)
		if err != nil {
			continue
		}
		_ = f.Close()
		c.index.add(key, &r, c.lastUsed(key))
	}
}

// lastUsed returns when a cached file was last used.
func (c *Cache) lastUsed(key string) time.Time {
	info, err := c.root.Lstat(path.Join(dirFiles, key+".state"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
