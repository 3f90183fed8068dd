// Package overlay is what of cached files is in memory and not on disk: pieces
// that the disk did not take, or does not take yet, or does not give back. What
// is on disk is known to [disk]; readers see both, one laid over the other.
//
// A piece comes into the overlay for one of six reasons:
//
//   - The file takes no data at all.
//   - The cache has no room.
//   - It takes long to find out whether there is room: then the piece is written
//     later, and leaves the overlay.
//   - The disk is slower than the link: then too.
//   - The write failed.
//   - The disk has lost the piece before, and is not trusted with it again.
//
// A piece that leaves the overlay unwritten is missing again.
package overlay

import (
	"container/list"
	"crypto/sha256"
	"sync"

	"golang.org/x/sync/semaphore"
)

// Size bounds the pieces that are held, in bytes, for the process. The last one
// is held whatever its size.
const Size = 64 << 20

// Memory holds the latest pieces of all files: a piece that was fetched ahead of
// a reader must stay until it is read. Pieces that were read go first.
type Memory struct {
	later *semaphore.Weighted // bytes of pieces that are still to be written

	mu    sync.Mutex
	bytes int64
	byKey map[key]*held
	fresh list.List // of *held that nobody has read, the latest first
	read  list.List // of those that somebody has, the same
}

type key struct {
	file  *File
	piece int
}

type held struct {
	key  key
	data []byte
	in   *list.List
	at   *list.Element
}

// New returns an empty Memory.
func New() *Memory {
	return &Memory{later: semaphore.NewWeighted(Size), byKey: map[key]*held{}}
}

// Held returns how many bytes are held.
func (m *Memory) Held() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes
}

// Of returns the overlay of a file, which is empty.
func (m *Memory) Of() *File { return &File{mem: m} }

func (m *Memory) dropLocked(k key) {
	if p := m.byKey[k]; p != nil {
		m.bytes -= int64(len(p.data))
		p.in.Remove(p.at)
		delete(m.byKey, k)
	}
}

// File is the overlay of one file. It is safe for concurrent use.
type File struct {
	mem *Memory

	mu         sync.Mutex
	distrusted map[int]bool              // pieces that are not put on disk again
	rotten     map[int]bool              // pieces of which the disk has once given back other bytes than were written
	vouched    map[int][sha256.Size]byte // digests of pieces that were right, with all of their part, while they were here
}

// Pieces are payloads of pieces that a reader was given from memory. They must
// not be changed.
type Pieces map[int][]byte

// With returns p with one piece more. p may be nil.
func (p Pieces) With(i int, payload []byte) Pieces {
	if p == nil {
		p = Pieces{}
	}
	p[i] = payload
	return p
}

// Put holds a copy of a piece's payload, and returns the copy.
func (f *File) Put(i int, payload []byte) []byte {
	data := append(make([]byte, 0, len(payload)), payload...)
	m := f.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	k := key{f, i}
	m.dropLocked(k)
	p := &held{key: k, data: data, in: &m.fresh}
	p.at = p.in.PushFront(p)
	m.byKey[k] = p
	m.bytes += int64(len(data))
	for m.bytes > Size && len(m.byKey) > 1 {
		last := m.read.Back()
		if last == nil {
			last = m.fresh.Back()
		}
		m.dropLocked(last.Value.(*held).key)
	}
	return data
}

// Get returns a piece's payload to a reader, or nil. It must not be changed.
func (f *File) Get(i int) []byte {
	m := f.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.byKey[key{f, i}]
	if p == nil {
		return nil
	}
	p.in.Remove(p.at)
	p.in = &m.read
	p.at = p.in.PushFront(p)
	return p.data
}

// Peek is Get without counting as a read.
func (f *File) Peek(i int) []byte {
	m := f.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.byKey[key{f, i}]; p != nil {
		return p.data
	}
	return nil
}

// Drop drops piece i, which is on disk now, or wrong. It reports whether the
// piece was held.
func (f *File) Drop(i int) bool {
	m := f.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	before := len(m.byKey)
	m.dropLocked(key{f, i})
	return len(m.byKey) < before
}

// Close drops all pieces of the file.
func (f *File) Close() {
	m := f.mem
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.byKey {
		if k.file == f {
			m.dropLocked(k)
		}
	}
}

// BeginLater reports whether a piece of n bytes may wait to be written. done
// must be called when it waits no more.
func (f *File) BeginLater(n int64) (done func(), ok bool) {
	n = min(n, Size)
	if !f.mem.later.TryAcquire(n) {
		return nil, false
	}
	return func() { f.mem.later.Release(n) }, true
}

// Distrust notes that the disk has lost piece i.
func (f *File) Distrust(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.distrustLocked(i)
}

func (f *File) distrustLocked(i int) {
	if f.distrusted == nil {
		f.distrusted = map[int]bool{}
	}
	f.distrusted[i] = true
}

// Distrusts reports whether piece i is not to be put on disk.
func (f *File) Distrusts(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.distrusted[i]
}

// Rotted notes that the disk has given back other bytes of piece i than were
// written. The second time the piece is distrusted.
func (f *File) Rotted(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rotten == nil {
		f.rotten = map[int]bool{}
	}
	if f.rotten[i] {
		f.distrustLocked(i)
	}
	f.rotten[i] = true
}

// Vouch notes digests of pieces that a digest of their whole part has vouched
// for. They may be gone from memory by now: if they come again, they are
// compared with that.
func (f *File) Vouch(sums map[int][sha256.Size]byte) {
	if len(sums) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vouched == nil {
		f.vouched = map[int][sha256.Size]byte{}
	}
	for i, sum := range sums {
		f.vouched[i] = sum
	}
}

// Vouched returns the digest that Vouch has noted of piece i.
func (f *File) Vouched(i int) (want [sha256.Size]byte, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	want, ok = f.vouched[i]
	return want, ok
}
