// Package sparse describes where the data of a sparse file lies: a Map is
// the ordered list of data segments, and everything between them is a hole
// that reads as zeros. A Map translates between the file as readers see it
// and the payload, the concatenation of the segments.
//
// All offsets and lengths are in bytes. A Map is immutable and safe for
// concurrent use; its methods take O(log n) steps for n segments unless
// documented otherwise.
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
	// MaxSize is the largest apparent size of a file, 1 PiB. No disk of
	// a VM comes near it, many file systems stop at 16 TiB, and the sum
	// of two sizes cannot overflow.
	MaxSize = 1 << 50

	// MaxSegments bounds the segments of a map. A 4 GiB Windows VM has
	// tens of thousands of segments; MaxSegments take 24 MiB of memory.
	MaxSegments = 1 << 20

	// MaxText bounds a map's text: no config blob is larger.
	MaxText = 64 << 20
)

// ErrInvalid is wrapped by every error for a list of segments that is not a
// valid map: negative, empty, overlapping, descending or out of range.
var ErrInvalid = errors.New("invalid sparse map")

// Segment is a range of data in a file.
type Segment struct {
	Offset int64 `json:"o"`
	Length int64 `json:"l"`
}

// Run is a range of the payload that is contiguous in the file.
type Run struct {
	Offset  int64 // in the file
	Payload int64 // in the payload
	Length  int64
}

// Map is a file's list of data segments. Adjacent segments are not merged:
// {0,4},{4,4} stays as it was written.
type Map struct {
	segs   []Segment
	before []int64 // payload bytes before segs[i]; the extra last entry is the total
	size   int64
}

// New returns a map of a file with the given apparent size. It copies the
// segments. It fails with ErrInvalid unless they ascend, do not overlap,
// have at least one byte each and end within size.
func New(segs []Segment, size int64) (*Map, error) {
	return build(slices.Clone(segs), size)
}

// Dense returns the map of a file without holes. It panics unless size is in
// [0, MaxSize]; callers check sizes first.
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

// Parse parses the JSON text of a map, an array of {"o":offset,"l":length},
// and validates it as New does. The text is bounded by MaxText and
// MaxSegments.
func Parse(text string, size int64) (*Map, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: text of %d bytes", ErrInvalid, len(text))
	}
	// Count the segments before they take memory.
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

// Size returns the file's apparent size.
func (m *Map) Size() int64 { return m.size }

// DataSize returns the payload's size: the sum of the segments' lengths.
func (m *Map) DataSize() int64 { return m.before[len(m.segs)] }

// Len returns the number of segments.
func (m *Map) Len() int { return len(m.segs) }

// Segments returns the segments, ascending. The caller must not change
// them.
func (m *Map) Segments() []Segment { return m.segs }

// IsDense reports whether the file has no holes.
func (m *Map) IsDense() bool { return m.DataSize() == m.size }

// PayloadAt returns the number of payload bytes before file offset off. So
// the data in [a,b) of the file is [PayloadAt(a), PayloadAt(b)) of the
// payload. An off before the file's start counts as 0, an off after the
// file's end as the end.
func (m *Map) PayloadAt(off int64) int64 {
	i := m.next(off)
	if i < len(m.segs) && m.segs[i].Offset < off {
		return m.before[i] + off - m.segs[i].Offset
	}
	return m.before[i]
}

// Payload yields the runs of [off, off+n) of the payload in order. It
// ignores offsets outside the payload. It takes O(log n) steps, plus one for
// each run.
func (m *Map) Payload(off, n int64) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		from := max(off, 0)
		end := m.DataSize()
		if n <= 0 || from >= end {
			return
		}
		if off < end-n { // off+n may overflow, end-n cannot: n > 0
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

// SeekData implements lseek's SEEK_DATA: it returns the first offset at or
// after off that holds data, or false if no data follows.
func (m *Map) SeekData(off int64) (int64, bool) {
	i := m.next(off)
	if i == len(m.segs) {
		return 0, false
	}
	return max(off, m.segs[i].Offset), true
}

// SeekHole implements lseek's SEEK_HOLE: it returns the first offset at or
// after off that lies in a hole. The file's end counts as a hole, and is the
// result for any off beyond it. SeekHole takes one more step for each
// adjacent segment.
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

// next returns the index of the first segment that ends after off.
func (m *Map) next(off int64) int {
	return sort.Search(len(m.segs), func(i int) bool {
		return m.segs[i].Offset+m.segs[i].Length > off
	})
}

// Text returns the map's JSON as it appears in the config blob and the PAX
// record. Parse accepts it.
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
