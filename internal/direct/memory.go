package direct

import (
	"math/bits"
	"sync"
)

// memory holds the buffers of units that were read, for reuse: the garbage
// collector would let twice as many accumulate. Used and free buffers
// together stay within most.
type memory struct {
	mu   sync.Mutex
	most int64
	held int64 // bytes of all buffers, used or free
	kept map[int64][][]byte
}

// get returns a buffer of n bytes with arbitrary contents.
func (m *memory) get(n int64) []byte {
	size := sizeClass(n)
	m.mu.Lock()
	defer m.mu.Unlock()
	if list := m.kept[size]; len(list) > 0 {
		m.kept[size] = list[:len(list)-1]
		return list[len(list)-1][:n]
	}
	m.held += size
	m.trimLocked()
	return make([]byte, n, size)
}

// put returns a buffer from get.
func (m *memory) put(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kept == nil {
		m.kept = map[int64][][]byte{}
	}
	size := int64(cap(b))
	m.kept[size] = append(m.kept[size], b)
	m.trimLocked()
}

// trimLocked drops buffers of sizes that are no longer requested.
func (m *memory) trimLocked() {
	for size, list := range m.kept {
		for m.held > m.most && len(list) > 0 {
			list[len(list)-1] = nil
			list = list[:len(list)-1]
			m.held -= size
		}
		m.kept[size] = list
	}
}

// sizeClass rounds n up to an eighth of a power of two, so that chunks of
// similar sizes share buffers.
func sizeClass(n int64) int64 {
	if n <= 4096 {
		return 4096
	}
	step := int64(1) << (bits.Len64(uint64(n-1)) - 3)
	return (n + step - 1) / step * step
}
