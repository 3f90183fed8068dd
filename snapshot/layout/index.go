package layout

import (
	"context"
	"fmt"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// Index locates the granules of a packed file. It fetches a section when the
// section is first needed. An Index is safe for concurrent use.
type Index struct {
	Digest string // of the index blob
	Size   int64  // of the index blob, in bytes
	Head   *packed.Head
	// HeadDigest is the digest of the frame at the index's end; "" if
	// only the numbers of the granules are known.
	HeadDigest    string
	*packed.Slots // the file's granules, numbered

	fetch    FetchIndex
	sections *Sections
}

// Sections holds the latest sections of several files' indexes in memory. It
// is safe for concurrent use.
type Sections struct {
	mu       sync.Mutex // never held while a section is fetched
	held     map[sectionKey]*packed.Section
	recent   []sectionKey // of held, the latest last
	fetching map[sectionKey]chan struct{}
}

type sectionKey struct {
	index  *Index
	number int
}

// NewSections returns an empty Sections.
func NewSections() *Sections {
	return &Sections{held: map[sectionKey]*packed.Section{}, fetching: map[sectionKey]chan struct{}{}}
}

// FetchIndex returns bytes [off, off+n) of the index blob, which must have
// the given sum.
type FetchIndex func(ctx context.Context, off, n int64, sum packed.Sum) ([]byte, error)

// mostSections bounds the sections held in memory. Each takes some 180 KiB.
const mostSections = 128

// NewIndex returns an index with a parsed head.
func NewIndex(digest string, size int64, headDigest string, head *packed.Head, fetch FetchIndex) *Index {
	return &Index{
		Digest: digest, Size: size, Head: head, HeadDigest: headDigest, Slots: packed.NewSlots(head.Map, head.Granule), fetch: fetch,
		sections: NewSections(),
	}
}

// HoldIn makes the index hold its sections in s, so that it shares the bound
// on sections in memory with other indexes. It must be called before the
// first use.
func (x *Index) HoldIn(s *Sections) { x.sections = s }

// Section returns the section with the given number, or nil if that section
// holds no granule. It blocks until the section is fetched or ctx ends.
func (x *Index) Section(ctx context.Context, number int) (*packed.Section, error) {
	ref, ok := x.Head.Section(number)
	if !ok {
		return nil, nil
	}
	key := sectionKey{x, number}
	for {
		s, other, mine := x.sections.claim(key)
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

// claim returns the section if it is in memory. Otherwise it returns exactly
// one channel: other, which is closed when another caller's fetch has ended,
// or mine, which this caller must close after fetching the section.
func (h *Sections) claim(key sectionKey) (s *packed.Section, other, mine chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s = h.held[key]; s != nil {
		return s, nil, nil
	}
	if other = h.fetching[key]; other == nil {
		mine = make(chan struct{})
		h.fetching[key] = mine
	}
	return nil, other, mine
}

// fetched holds a section that the caller has claimed, or none if s is nil.
func (h *Sections) fetched(key sectionKey, s *packed.Section) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.fetching, key)
	if s == nil {
		return
	}
	if len(h.recent) == mostSections {
		delete(h.held, h.recent[0])
		h.recent = h.recent[1:]
	}
	h.held[key] = s
	h.recent = append(h.recent, key)
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
	if err != nil {
		s = nil
	}
	x.sections.fetched(sectionKey{x, ref.Number}, s)
	return s, err
}

// Granule returns where the data of granule i is stored. It may fetch a
// section.
func (x *Index) Granule(ctx context.Context, i int) (packed.Granule, error) {
	slot := x.Slot(i)
	s, err := x.Section(ctx, int(slot/packed.SectionSlots))
	if err != nil {
		return packed.Granule{}, err
	}
	g, _ := s.Granule(slot) // always found: a head whose sections do not match its map is refused
	return g, nil
}

// Part returns the only part of a packed file.
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
	return digests.Format(p.Digest), p.Size
}
