package cache

import (
	"container/list"
	"sync"
)

// spareSize bounds the pieces that are held in memory because the disk
// did not take them, for the process.
const spareSize = 64 << 20

// spare holds pieces that could not be kept on disk, the latest of them:
// what was fetched ahead of a reader must live until he comes. Those that
// were read go first.
type spare struct {
	mu    sync.Mutex
	bytes int64
	byKey map[spareKey]*sparePiece
	fresh list.List // of *sparePiece that nobody has read, the latest first
	read  list.List // of those that somebody has, the same
}

type spareKey struct {
	entry *entry
	piece int
}

type sparePiece struct {
	key  spareKey
	data []byte
	in   *list.List
	at   *list.Element
}

// put takes a copy of a piece's payload.
func (s *spare) put(e *entry, piece int, payload []byte) []byte {
	data := append(make([]byte, 0, len(payload)), payload...)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := spareKey{e, piece}
	s.dropLocked(key)
	if s.byKey == nil {
		s.byKey = map[spareKey]*sparePiece{}
	}
	p := &sparePiece{key: key, data: data, in: &s.fresh}
	p.at = p.in.PushFront(p)
	s.byKey[key] = p
	s.bytes += int64(len(data))
	for s.bytes > spareSize && len(s.byKey) > 1 {
		last := s.read.Back()
		if last == nil {
			last = s.fresh.Back()
		}
		s.dropLocked(last.Value.(*sparePiece).key)
	}
	return data
}

// get returns a piece's payload to a reader, or nil. It must not be changed.
func (s *spare) get(e *entry, piece int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.byKey[spareKey{e, piece}]
	if p == nil {
		return nil
	}
	p.in.Remove(p.at)
	p.in = &s.read
	p.at = p.in.PushFront(p)
	return p.data
}

// peek is get for who is no reader.
func (s *spare) peek(e *entry, piece int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.byKey[spareKey{e, piece}]; p != nil {
		return p.data
	}
	return nil
}

// drop drops pieces [from, to), which are on disk now, or wrong. It reports
// whether any of them was held.
func (s *spare) drop(e *entry, from, to int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.byKey)
	for i := from; i < to && s.bytes > 0; i++ {
		s.dropLocked(spareKey{e, i})
	}
	return len(s.byKey) < before
}

// forget drops what is held of a file.
func (s *spare) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.byKey {
		if key.entry == e {
			s.dropLocked(key)
		}
	}
}

func (s *spare) dropLocked(key spareKey) {
	if p := s.byKey[key]; p != nil {
		s.bytes -= int64(len(p.data))
		p.in.Remove(p.at)
		delete(s.byKey, key)
	}
}
