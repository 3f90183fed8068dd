package snapshot

import (
	"hash/maphash"
	"slices"
	"sync"

	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// granuleSet holds every granule that an artifact can refer to, each once:
// those of its base and those written so far. Ids are consecutive, from 0.
// It takes about 56 bytes for each granule, and is safe for concurrent use.
type granuleSet struct {
	mu     sync.RWMutex
	sums   []packed.Sum
	places []granulePlace
	table  []uint32 // hash table by sum: id+1, or 0
	seed   maphash.Seed
}

// granulePlace is the place of a granule's frame.
type granulePlace struct {
	pack   int32 // index in packSet; noPack if the granule must be written again
	offset uint32
	stored uint32
}

const noPack = -1

func newGranuleSet() *granuleSet {
	return &granuleSet{table: make([]uint32, 1<<10), seed: maphash.MakeSeed()}
}

// find returns the id of a granule that has a place.
func (s *granuleSet) find(sum packed.Sum) (id uint32, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	id, ok = s.lookup(sum)
	return id, ok && s.places[id].pack != noPack
}

// add gives a granule a place, unless it has one, and returns its id.
func (s *granuleSet) add(sum packed.Sum, place granulePlace) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.lookup(sum); ok {
		if s.places[id].pack == noPack {
			s.places[id] = place
		}
		return id
	}
	if 2*len(s.sums) >= len(s.table) {
		s.grow()
	}
	id := uint32(len(s.sums))
	s.sums = append(s.sums, sum)
	s.places = append(s.places, place)
	s.table[s.slot(sum)] = id + 1
	return id
}

func (s *granuleSet) lookup(sum packed.Sum) (id uint32, ok bool) {
	if at := s.table[s.slot(sum)]; at != 0 {
		return at - 1, true
	}
	return 0, false
}

// slot returns the slot of table that holds sum, or a free one for it. The
// hash is seeded because the writer of the base chose the sums.
func (s *granuleSet) slot(sum packed.Sum) int {
	mask := len(s.table) - 1
	for i := int(maphash.Bytes(s.seed, sum[:])) & mask; ; i = (i + 1) & mask {
		if at := s.table[i]; at == 0 || s.sums[at-1] == sum {
			return i
		}
	}
}

func (s *granuleSet) grow() {
	s.table = make([]uint32, 2*len(s.table))
	for id, sum := range s.sums {
		s.table[s.slot(sum)] = uint32(id) + 1
	}
}

// packSet holds the packs of an artifact that is being pushed: those of its
// base first.
type packSet struct {
	mu    sync.Mutex
	packs []pack
}

// pack is a blob of granules.
type pack struct {
	digest string // "" until a new pack is closed
	size   int64  // in bytes
	base   bool   // the base has it
}

// open starts a new pack and returns its index.
func (s *packSet) open() int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs = append(s.packs, pack{})
	return int32(len(s.packs) - 1)
}

// now returns a copy of the packs, because uploads close new ones
// concurrently.
func (s *packSet) now() []pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.packs)
}

// close records the digest and size of a new pack.
func (s *packSet) close(i int32, digest string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs[i].digest, s.packs[i].size = digest, size
}
