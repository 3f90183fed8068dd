package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// index knows which cached files hold a part with a given digest, so that
// what another file has is copied and not downloaded. It is made when it
// is first asked, and learns of files that this process opens later.
type index struct {
	mu    sync.Mutex
	built bool
	parts map[string][]place
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

func (x *index) addLocked(key string, r *record) {
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
	if !x.built {
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

// places returns where else the part may be found.
func (c *Cache) places(e *entry, part int) []place {
	x := &c.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.built {
		c.buildIndexLocked()
	}
	var found []place
	for _, p := range x.parts[e.file.Parts[part].Digest] {
		own := p.key == e.key && p.first == e.grid.first[part]
		if !own && p.length == e.file.Parts[part].Length {
			found = append(found, p)
		}
	}
	return found
}

// buildIndexLocked reads what every file in the cache is made of. What
// cannot be read donates nothing.
func (c *Cache) buildIndexLocked() {
	x := &c.index
	x.built = true
	x.parts = map[string][]place{}
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
		r, _, f, err := c.readRecord(key)
		if err != nil {
			continue
		}
		_ = f.Close()
		x.addLocked(key, &r)
	}
}

// learn adds a file that was opened after the index was made.
func (x *index) learn(key string, r record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.built {
		return // it will be found on disk
	}
	for _, p := range x.parts[r.firstDigest()] {
		if p.key == key {
			return
		}
	}
	x.addLocked(key, &r)
}

func (r *record) firstDigest() string {
	if len(r.Parts) == 0 {
		return ""
	}
	return r.Parts[0].Digest
}

// donor is another cached file, open to be copied from. Its lock keeps it
// from being evicted meanwhile.
type donor struct {
	entry
}

// openDonor opens a cached file by its key. It is not an error when there
// is none any more.
func (c *Cache) openDonor(key string) *donor {
	d, err := c.donorOf(key)
	if err != nil {
		return nil
	}
	if d.openToRead() != nil {
		d.closeFiles()
		return nil
	}
	return d
}

// donorOf makes a donor of a cached file's record, with no file open yet.
func (c *Cache) donorOf(key string) (*donor, error) {
	r, rest, f, err := c.readRecord(key)
	if err != nil {
		return nil, err
	}
	m, err := readMap(rest, r.Size)
	_ = f.Close()
	if err != nil {
		return nil, errors.Join(errDamaged, err)
	}
	d := &donor{entry{cache: c, key: key, file: r.layout(m)}}
	d.grid = &grid{file: d.file, first: []int{0}}
	for i := range r.Parts {
		d.grid.size = append(d.grid.size, r.Parts[i].PieceSize)
		d.grid.first = append(d.grid.first, d.grid.first[i]+r.Parts[i].pieces())
	}
	return d, nil
}

func (d *donor) openToRead() error {
	sf, err := d.cache.root.OpenFile(path.Join(dirFiles, d.key+".state"), os.O_RDWR|openFlags, 0)
	if err != nil {
		return err
	}
	if err := lock(sf, unix.F_RDLCK, lockInUse, 1); err != nil {
		_ = sf.Close()
		return err
	}
	if d.state, err = openState(sf, d.key, d.grid.pieces()); err != nil {
		_ = sf.Close()
		return err
	}
	d.data, err = d.cache.root.OpenFile(d.path(".data"), os.O_RDONLY|openFlags, 0)
	return err
}

// donor returns an open donor, which lives as long as e does; nil when it
// cannot be had.
func (e *entry) donor(key string) *entry {
	if key == e.key {
		return e
	}
	e.donors.Lock() // over I/O: nobody but the same file's jobs waits for it
	defer e.donors.Unlock()
	if e.donors.open == nil {
		e.donors.open = map[string]*donor{}
	}
	d, known := e.donors.open[key]
	if !known {
		d = e.cache.openDonor(key)
		e.donors.open[key] = d
	}
	if d == nil {
		return nil
	}
	return &d.entry
}

// alone has one fetch of a part with a given digest at a time, for the
// process: who comes second waits and copies. It returns what ends the
// turn, or nil when the wait ended with ctx.
func (c *Cache) alone(ctx context.Context, e *entry, part int) (done func()) {
	digest := e.file.Parts[part].Digest
	for {
		c.mu.Lock()
		other := c.fetching[digest]
		if other == nil {
			mine := make(chan struct{})
			c.fetching[digest] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				delete(c.fetching, digest)
				c.mu.Unlock()
				close(mine)
			}
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil
		}
	}
}

// copyPieces fills those of pieces [from, to) of a part that another
// cached file holds, or the same file elsewhere.
func (e *entry) copyPieces(part, from, to int) {
	for _, p := range e.cache.places(e, part) {
		if e.state.hasAll(from, to) {
			return
		}
		d := e.donor(p.key)
		if d == nil {
			continue
		}
		theirs := donated{entry: d, part: d.grid.part(p.first), piece: -1}
		for i := from; i < to; i++ {
			if !e.state.has(i) {
				e.copyPiece(part, i, &theirs)
			}
		}
		putBuffer(theirs.buf)
	}
}

// copyPiece copies piece i from another file's form of the same part,
// which may be cut into other pieces.
func (e *entry) copyPiece(part, i int, d *donated) {
	off, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	verified, ok := d.read(buf, off-e.file.Parts[part].Offset)
	if !ok || e.unkept {
		return
	}
	if !verified {
		var err error
		if verified, err = e.checkPiece(i, buf); err != nil {
			return
		}
		if e.grid.whole(part) && !verified {
			if !e.hasDigest(part, buf) {
				return
			}
			verified = true
		}
	}
	if !verified && d.entry != e {
		return // another source may have sent it
	}
	e.arrived(i, buf, verified)
}

// hasDigest says that payload is all of a part and hashes to its digest. A
// frame's digest is not over its payload.
func (e *entry) hasDigest(part int, payload []byte) bool {
	p := &e.file.Parts[part]
	sum := sha256.Sum256(payload)
	return p.Encoding == layout.Raw && "sha256:"+hex.EncodeToString(sum[:]) == p.Digest
}

// donated reads a part of another cached file. It looks at the checksum
// of each piece it takes from.
type donated struct {
	entry *entry
	part  int
	piece int    // the piece in buf; -1: none
	word  uint64 // its state
	buf   []byte
}

// read fills p from the part's offset off on. It reports whether all of it
// was verified, and whether all of it was there and as it was kept.
func (d *donated) read(p []byte, off int64) (verified, ok bool) {
	verified = true
	g := d.entry.grid
	for len(p) > 0 {
		i := g.first[d.part] + int(off/g.size[d.part])
		if !d.load(i) {
			return false, false
		}
		verified = verified && d.word&wordVerified != 0
		n := copy(p, d.buf[off%g.size[d.part]:])
		p, off = p[n:], off+int64(n)
	}
	return verified, true
}

func (d *donated) load(i int) bool {
	if i == d.piece {
		return true
	}
	d.piece = -1
	d.word = d.entry.state.word(i)
	if d.word&wordPresent == 0 {
		return false
	}
	_, n := d.entry.grid.extent(i)
	if int64(cap(d.buf)) < n {
		putBuffer(d.buf)
		d.buf = getBuffer(n)
	}
	d.buf = d.buf[:n]
	if err := d.entry.load(i, d.buf); err != nil || xxhash.Sum64(d.buf)&wordSum != d.word&wordSum {
		return false
	}
	d.piece = i
	return true
}
