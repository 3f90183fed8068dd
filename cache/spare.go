package cache

import (
	"container/list"
	"sync"
)

// spareSize bounds the pieces that are held in memory because the disk
// did not take them, for the process.
const spareSize = 64 << 20

// spare holds pieces that could not be kept on disk, the latest of them:
// what was fetched ahead of a reader must live until he comes.
type spare struct {
	mu    sync.Mutex
	bytes int64
	byKey map[spareKey]*list.Element
	order list.List // of *sparePiece, the latest first
}

type spareKey struct {
	entry *entry
	piece int
}

type sparePiece struct {
	key  spareKey
	data []byte
}

// put takes a copy of a piece's payload.
func (s *spare) put(e *entry, piece int, payload []byte) []byte {
	data := append(make([]byte, 0, len(payload)), payload...)
	s.mu.Lock()
	defer s.mu.Unlock()
	key := spareKey{e, piece}
	s.dropLocked(key)
	if s.byKey == nil {
		s.byKey = map[spareKey]*list.Element{}
	}
	s.byKey[key] = s.order.PushFront(&sparePiece{key, data})
	s.bytes += int64(len(data))
	for s.bytes > spareSize && s.order.Len() > 1 {
		s.dropLocked(s.order.Back().Value.(*sparePiece).key)
	}
	return data
}

// get returns a piece's payload, or nil. It must not be changed.
func (s *spare) get(e *entry, piece int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.byKey[spareKey{e, piece}]
	if el == nil {
		return nil
	}
	s.order.MoveToBack(el) // most are read once, and others are still to be
	return el.Value.(*sparePiece).data
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
	if el := s.byKey[key]; el != nil {
		s.bytes -= int64(len(el.Value.(*sparePiece).data))
		s.order.Remove(el)
		delete(s.byKey, key)
	}
}
