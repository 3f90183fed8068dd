package layout

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// Index finds the granules of a packed file. Its sections are fetched when
// they are first needed. It is safe for concurrent use.
type Index struct {
	Digest string // of the index blob
	Size   int64  // of the index blob, in bytes
	Head   *packed.Head
	// HeadDigest is the digest of the frame at the index's end; "" if only
	// the numbers of the granules are known.
	HeadDigest    string
	*packed.Slots // the file's granules, numbered

	fetch FetchIndex

	mu       sync.Mutex // never held while a section is fetched
	sections map[int]*packed.Section
	recent   []int // numbers of sections, the latest last
	fetching map[int]chan struct{}
}

// FetchIndex returns bytes [off, off+n) of the index blob, which have the
// given sum.
type FetchIndex func(ctx context.Context, off, n int64, sum packed.Sum) ([]byte, error)

// mostSections bounds the sections of a file that are held in memory. Each
// takes some 180 KiB.
const mostSections = 64

// NewIndex returns an index whose head was parsed already.
func NewIndex(digest string, size int64, headDigest string, head *packed.Head, fetch FetchIndex) *Index {
	return &Index{
		Digest: digest, Size: size, Head: head, HeadDigest: headDigest, Slots: packed.NewSlots(head.Map, head.Granule), fetch: fetch,
		sections: map[int]*packed.Section{}, fetching: map[int]chan struct{}{},
	}
}

// Section returns the section with that number, or nil if it holds no
// granule. It blocks until the section was fetched, or ctx ends.
func (x *Index) Section(ctx context.Context, number int) (*packed.Section, error) {
	ref, ok := x.Head.Section(number)
	if !ok {
		return nil, nil
	}
	for {
		s, other, mine := x.claim(number)
		if s != nil {
			return s, nil
		}
		if mine != nil {
			return x.load(ctx, ref, mine)
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// claim returns the section if it is in memory. Otherwise exactly one of
// the channels is set: other is closed when another caller has ended its
// fetch; mine must be closed by this caller when it has.
func (x *Index) claim(number int) (s *packed.Section, other, mine chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s = x.sections[number]; s != nil {
		return s, nil, nil
	}
	if other = x.fetching[number]; other == nil {
		mine = make(chan struct{})
		x.fetching[number] = mine
	}
	return nil, other, mine
}

func (x *Index) load(ctx context.Context, ref packed.SectionRef, done chan struct{}) (*packed.Section, error) {
	defer close(done)
	frame, err := x.fetch(ctx, ref.Offset, ref.Stored, ref.Sum)
	var s *packed.Section
	if err == nil {
		if s, err = packed.ReadSection(frame, x.Head, ref); err != nil {
			err = fmt.Errorf("%w: index %s: %w", ErrContent, x.Digest, err)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.fetching, ref.Number)
	if err != nil {
		return nil, err
	}
	if len(x.recent) == mostSections {
		delete(x.sections, x.recent[0])
		x.recent = x.recent[1:]
	}
	x.sections[ref.Number] = s
	x.recent = append(x.recent, ref.Number)
	return s, nil
}

// Granule returns where the data of granule i is stored. It may have to
// fetch a section.
func (x *Index) Granule(ctx context.Context, i int) (packed.Granule, error) {
	slot := x.Slot(i)
	s, err := x.Section(ctx, int(slot/packed.SectionSlots))
	if err != nil {
		return packed.Granule{}, err
	}
	g, _ := s.Granule(slot) // a head whose sections are not those of its map is refused
	return g, nil
}

// Part returns the part that a packed file is.
func (x *Index) Part() Part {
	p := Part{Digest: x.Digest, Encoding: Packed, Length: x.Head.Map.DataSize()}
	for _, pack := range x.Head.Packs {
		p.StoredSize += pack.Size
	}
	return p
}

// Pack returns the digest and the size of a pack of the file.
func (x *Index) Pack(i int) (digest string, size int64) {
	p := &x.Head.Packs[i]
	return DigestOf(p.Digest), p.Size
}

// DigestOf returns a sum as registries and caches write it.
func DigestOf(sum packed.Sum) string { return "sha256:" + hex.EncodeToString(sum[:]) }
