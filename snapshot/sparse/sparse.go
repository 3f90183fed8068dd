// Package sparse knows where a sparse file's data lies: a Map is the
// ordered list of data segments, everything between them is holes that
// read as zeros. It translates between the file as readers see it and
// the payload, which is the segments one after another.
//
// All offsets and lengths are in bytes. A Map never changes once made and
// is safe for concurrent use; its methods take O(log n) steps for n
// segments unless they say otherwise.
package sparse

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strings"
)

const (
	// MaxSize is the largest apparent size of a file, 1 PiB. No disk of a
	// VM comes near it, many file systems stop at 16 TiB, and sums of two
	// such numbers cannot overflow.
	MaxSize = 1 << 50

	// MaxSegments bounds a map. A 4 GiB Windows VM has tens of thousands
	// of segments; at this number a map takes 24 MiB of memory.
	MaxSegments = 1 << 20

	// MaxText bounds a map's text: no config blob is larger.
	MaxText = 64 << 20
)

// ErrInvalid is in the chain of every error about a map that describes no
// file: negative, empty, overlapping, descending or out of range.
var ErrInvalid = errors.New("invalid sparse map")

// Segment is a run of data in a file.
type Segment struct {
	Offset int64 `json:"o"`
	Length int64 `json:"l"`
}

// Run is a stretch of the payload and its place in the file.
type Run struct {
	Offset  int64 // in the file
	Payload int64 // in the payload
	Length  int64
}

// Map is a file's data segments. Neighbours may touch: {0,4},{4,4} is
// kept as it was written.
type Map struct {
	segs   []Segment
	before []int64 // payload bytes before segs[i]; one more entry holds the total
	size   int64
}

// New makes a map of a file with the given apparent size. The segments
// are copied. It fails with ErrInvalid unless they ascend, do not
// overlap, have at least one byte each and end within size.
func New(segs []Segment, size int64) (*Map, error) {
	return build(slices.Clone(segs), size)
}

// Dense is the map of a file without holes. size must be in
// [0, MaxSize]; it panics otherwise, for callers check sizes first.
func Dense(size int64) *Map {
	var segs []Segment
	if size != 0 {
		segs = []Segment{{0, size}}
	}
	m, err := build(segs, size)
	if err != nil {
		panic(err)
	}
	return m
}

// Parse reads the JSON text of a map, an array of {"o":offset,"l":length},
// as New would. It is bounded by MaxText and MaxSegments.
func Parse(text string, size int64) (*Map, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: text of %d bytes", ErrInvalid, len(text))
	}
	// Before they take memory.
	if n := strings.Count(text, "{"); n > MaxSegments {
		return nil, fmt.Errorf("%w: %d segments, at most %d", ErrInvalid, n, MaxSegments)
	}
	segs, err := parseSegments(text)
	if err != nil {
		return nil, err
	}
	return build(segs, size)
}

func build(segs []Segment, size int64) (*Map, error) {
	if size < 0 || size > MaxSize {
		return nil, fmt.Errorf("%w: file size %d", ErrInvalid, size)
	}
	if len(segs) > MaxSegments {
		return nil, fmt.Errorf("%w: %d segments, at most %d", ErrInvalid, len(segs), MaxSegments)
	}
	m := &Map{segs: segs, before: make([]int64, len(segs)+1), size: size}
	var end, sum int64
	for i, s := range segs {
		switch {
		case s.Offset < 0 || s.Length <= 0:
			return nil, fmt.Errorf("%w: segment %d is {%d,%d}", ErrInvalid, i, s.Offset, s.Length)
		case s.Offset < end:
			return nil, fmt.Errorf("%w: segment %d begins at %d, the one before ends at %d", ErrInvalid, i, s.Offset, end)
		case s.Offset > size || s.Length > size-s.Offset:
			return nil, fmt.Errorf("%w: segment %d is {%d,%d}, the file has %d bytes", ErrInvalid, i, s.Offset, s.Length, size)
		}
		end = s.Offset + s.Length
		sum += s.Length
		m.before[i+1] = sum
	}
	return m, nil
}

// Size is the file's apparent size.
func (m *Map) Size() int64 { return m.size }

// DataSize is the payload's size: the sum of the segments.
func (m *Map) DataSize() int64 { return m.before[len(m.segs)] }

// Len is the number of segments.
func (m *Map) Len() int { return len(m.segs) }

// Segments returns the segments, ascending. The caller must not change
// them.
func (m *Map) Segments() []Segment { return m.segs }

// IsDense says that the file has no holes.
func (m *Map) IsDense() bool { return m.DataSize() == m.size }

// PayloadAt is the number of payload bytes that lie before file offset
// off. So [a,b) of the file holds [PayloadAt(a), PayloadAt(b)) of the
// payload. An off before the file's start counts as 0, one after its end
// as the end.
func (m *Map) PayloadAt(off int64) int64 {
	i := m.next(off)
	if i < len(m.segs) && m.segs[i].Offset < off {
		return m.before[i] + off - m.segs[i].Offset
	}
	return m.before[i]
}

// Payload yields where [off, off+n) of the payload lies in the file, in
// order; what lies outside the payload is left out. It takes O(log n)
// steps and one for each run.
func (m *Map) Payload(off, n int64) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		from := max(off, 0)
		end := m.DataSize()
		if n <= 0 || from >= end {
			return
		}
		if off < end-n { // off+n may overflow, this cannot: n > 0
			end = off + n
		}
		i := sort.Search(len(m.segs), func(i int) bool { return m.before[i+1] > from })
		for ; from < end; i++ {
			skip := from - m.before[i]
			r := Run{
				Offset:  m.segs[i].Offset + skip,
				Payload: from,
				Length:  min(m.segs[i].Length-skip, end-from),
			}
			if !yield(r) {
				return
			}
			from += r.Length
		}
	}
}

// SeekData is lseek's SEEK_DATA: the first offset at or after off that
// holds data. It is false where there is none before the end.
func (m *Map) SeekData(off int64) (int64, bool) {
	i := m.next(off)
	if i == len(m.segs) {
		return 0, false
	}
	return max(off, m.segs[i].Offset), true
}

// SeekHole is lseek's SEEK_HOLE: the first offset at or after off that
// lies in a hole; the file's end counts as one. Beyond the end it is the
// end. It takes one more step for each touching neighbour.
func (m *Map) SeekHole(off int64) int64 {
	if off >= m.size {
		return m.size
	}
	off = max(off, 0)
	for i := m.next(off); i < len(m.segs) && m.segs[i].Offset <= off; i++ {
		off = m.segs[i].Offset + m.segs[i].Length
	}
	return off
}

// next is the index of the first segment that ends after off.
func (m *Map) next(off int64) int {
	return sort.Search(len(m.segs), func(i int) bool {
		return m.segs[i].Offset+m.segs[i].Length > off
	})
}

// Text returns the map's JSON, as the config blob and the PAX record
// have it. Parse reads it back.
func (m *Map) Text() string {
	if len(m.segs) == 0 {
		return "[]"
	}
	b, err := json.Marshal(m.segs)
	if err != nil {
		panic(err) // two integers a segment: cannot fail
	}
	return string(b)
}
