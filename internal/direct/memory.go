package direct

import (
	"math/bits"
	"sync"
)

// memory is the buffers of units that were read, for those to come: the
// garbage collector would let twice as many pile up. What is in use and
// what is kept together stay within most.
type memory struct {
	mu   sync.Mutex
	most int64
	held int64 // bytes of all buffers, in use or kept
	kept map[int64][][]byte
}

// get returns a buffer of n bytes whose content is anything.
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

// put takes back what get returned.
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

// trimLocked gives buffers of sizes that nobody asks for to the collector.
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

// sizeClass rounds up to an eighth of a power of two, so that chunks of
// about one size share their buffers.
func sizeClass(n int64) int64 {
	if n <= 4096 {
		return 4096
	}
	step := int64(1) << (bits.Len64(uint64(n-1)) - 3)
	return (n + step - 1) / step * step
}
