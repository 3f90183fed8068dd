package workingset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
)

// Bounds on a set from elsewhere. Together they bound a decoded set to some
// 20 MiB.
const (
	MaxEncoded = 1 << 20 // bytes, compressed
	maxJSON    = 8 << 20 // bytes, decompressed
	maxFiles   = 1 << 10
	maxExtents = 1 << 18 // in all files
	maxText    = 255     // bytes of a title or an identity
	maxRuns    = 1 << 20
	maxGap     = 1 << 40 // pages
)

// wire is a set's JSON form. Keys are only ever added.
type wire struct {
	Version int      `json:"version"`
	Page    int64    `json:"page"`
	Runs    int      `json:"runs"`
	Partial bool     `json:"partial,omitempty"`
	Files   fileList `json:"files"`
}

type wireFile struct {
	Title   string     `json:"title"`
	Content string     `json:"content"`
	Size    int64      `json:"size"`
	Extents extentList `json:"extents"`
}

type (
	fileList   []wireFile
	extentList []Extent // each as [page, pages, stage, runs]
)

const wireVersion = 1

// Encode returns the set as zstd-compressed JSON of at most MaxEncoded
// bytes. Equal sets yield equal bytes. If the set is larger than that, it
// closes the smallest gaps between extents until the set fits.
func Encode(s *Set) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	enc, err := encoder()
	if err != nil {
		return nil, err
	}
	for gap := int64(0); gap <= maxGap; gap += gap/4 + 1 {
		if s.extents(gap) > maxExtents {
			continue
		}
		text, err := json.Marshal(s.wire(gap))
		if err != nil {
			return nil, err
		}
		if len(text) > maxJSON {
			continue
		}
		if out := enc.Encode(nil, text); len(out) <= MaxEncoded {
			return out, nil
		}
	}
	return nil, fmt.Errorf("%w: %d files do not fit", ErrInvalid, len(s.Files))
}

var encoder = sync.OnceValues(func() (*zstdframe.Encoder, error) { return zstdframe.NewEncoder(9, 1) })

// wire returns the form of the set in which gaps of up to that many pages
// between extents are closed.
func (s *Set) wire(gap int64) *wire {
	w := &wire{Version: wireVersion, Page: PageSize, Runs: s.Runs, Partial: s.Partial, Files: fileList{}}
	for _, f := range s.Files {
		e := f.Extents
		if gap > 0 {
			e = closeGaps(e, gap)
		}
		w.Files = append(w.Files, wireFile{Title: f.Title, Content: f.Content, Size: f.Size, Extents: e})
	}
	return w
}

// extents returns how many extents wire(gap) has.
func (s *Set) extents(gap int64) int {
	n := 0
	for i := range s.Files {
		if gap == 0 {
			n += len(s.Files[i].Extents)
		} else {
			n += len(closeGaps(s.Files[i].Extents, gap))
		}
	}
	return n
}

// closeGaps joins extents with at most gap pages between them. What is
// joined is wanted as early, and as often, as the first that was wanted.
func closeGaps(all []Extent, gap int64) []Extent {
	var out []Extent
	for _, e := range all {
		if n := len(out); n > 0 && e.Page-out[n-1].End() <= gap {
			last := &out[n-1]
			last.Pages = e.End() - last.Page
			last.Stage = min(last.Stage, e.Stage)
			last.Runs = max(last.Runs, e.Runs)
			continue
		}
		out = append(out, e)
	}
	return out
}

// Decode returns the set that Encode has written. Input is hostile: the
// error for anything else wraps ErrInvalid, and memory is bounded.
func Decode(data []byte) (*Set, error) {
	if len(data) > MaxEncoded {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrInvalid, MaxEncoded)
	}
	z, err := zstdframe.NewStream(bytes.NewReader(data), maxJSON)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer z.Close()
	text, err := io.ReadAll(io.LimitReader(z, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(text) > maxJSON {
		return nil, fmt.Errorf("%w: more than %d bytes of JSON", ErrInvalid, maxJSON)
	}
	return parse(text)
}

func parse(text []byte) (*Set, error) {
	var w wire
	if err := json.Unmarshal(text, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if w.Version != wireVersion || w.Page != PageSize {
		return nil, fmt.Errorf("%w: version %d with pages of %d bytes", ErrInvalid, w.Version, w.Page)
	}
	s := &Set{Runs: w.Runs, Partial: w.Partial}
	extents := 0
	for _, f := range w.Files {
		s.Files = append(s.Files, File{Title: f.Title, Content: f.Content, Size: f.Size, Extents: f.Extents})
		extents += len(f.Extents)
	}
	if extents > maxExtents {
		return nil, errExtents
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

var errExtents = fmt.Errorf("%w: more than %d extents", ErrInvalid, maxExtents)

// UnmarshalJSON counts the files before it makes them.
func (l *fileList) UnmarshalJSON(text []byte) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("files are not a list")
	}
	left := maxExtents
	for dec.More() {
		if len(*l) == maxFiles {
			return fmt.Errorf("more than %d files", maxFiles)
		}
		var f wireFile
		if err := dec.Decode(&f); err != nil {
			return err
		}
		if left -= len(f.Extents); left < 0 {
			return errExtents
		}
		*l = append(*l, f)
	}
	return nil
}

// MarshalJSON writes each extent as a list of four numbers.
func (l extentList) MarshalJSON() ([]byte, error) {
	out := []byte{'['}
	for i, e := range l {
		if i > 0 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, "[%d,%d,%d,%d]", e.Page, e.Pages, e.Stage, e.Runs)
	}
	return append(out, ']'), nil
}

// UnmarshalJSON counts the extents before it makes them.
func (l *extentList) UnmarshalJSON(text []byte) error {
	*l = nil
	dec := json.NewDecoder(bytes.NewReader(text))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("extents are not a list")
	}
	for dec.More() {
		if len(*l) == maxExtents {
			return errExtents
		}
		n := make(numbers, 0, 4)
		if err := dec.Decode(&n); err != nil {
			return err
		}
		if len(n) != 4 {
			return fmt.Errorf("an extent of %d numbers", len(n))
		}
		const most = 1 << 30
		if n[2] < 0 || n[2] > most || n[3] < 0 || n[3] > most { // an int has 32 bits somewhere
			return fmt.Errorf("an extent of stage %d in %d recordings", n[2], n[3])
		}
		*l = append(*l, Extent{Page: n[0], Pages: n[1], Stage: int(n[2]), Runs: int(n[3])})
	}
	return nil
}

// numbers is an extent's list, whose length is bounded.
type numbers []int64

// UnmarshalJSON refuses lists of more than four.
func (n *numbers) UnmarshalJSON(text []byte) error {
	if bytes.Count(text, []byte{','}) != 3 {
		return fmt.Errorf("an extent that is not four numbers")
	}
	return json.Unmarshal(text, (*[]int64)(n))
}
