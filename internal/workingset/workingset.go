// Package workingset defines working sets: which pages of a snapshot's files
// are wanted soon after a VM starts, and when. It records, merges, encodes
// and decodes them. It fetches nothing and knows neither mounts nor caches.
//
// A working set is a hint. It never changes what a reader gets, so a wrong
// or hostile one costs at most time.
package workingset

import (
	"errors"
	"fmt"
	"sort"
	"time"
)

// PageSize is the unit of a working set, in bytes, on every machine.
const PageSize = 4096

// ErrInvalid is wrapped by every error for a set that must not be used.
var ErrInvalid = errors.New("not a working set")

// Set is a working set of one snapshot, from one or more recordings.
type Set struct {
	Runs    int    // how many recordings were merged; at least 1
	Partial bool   // some recording was cut short
	Files   []File // no title occurs twice
}

// File is the part of a set that concerns one file.
type File struct {
	Title   string   // the file's name in the artifact
	Content string   // identity of its content, as layout.File.Key returns it
	Size    int64    // apparent size, in bytes
	Extents []Extent // ascending, without overlap, within Size
}

// Extent is a run of pages that were first touched in the same stage.
type Extent struct {
	Page, Pages int64 // the first page, and how many
	Stage       int   // when it was first touched: see Stage
	Runs        int   // in how many recordings it was touched
}

// End returns the page after the extent's last page.
func (e Extent) End() int64 { return e.Page + e.Pages }

// firstStage is how long stage 0 takes. Each stage takes twice as long as
// the one before it: a guest touches half of its set in the first 300 ms,
// in another order each time.
const firstStage = 100 * time.Millisecond

// MaxStage is the last stage. It begins after some hours.
const MaxStage = 16

// Stage returns the stage of a page that was touched that long after the
// first touch of the recording.
func Stage(after time.Duration) int {
	stage := 0
	for end := firstStage; after >= end && stage < MaxStage; stage++ {
		end += firstStage << (stage + 1)
	}
	return stage
}

// pages returns how many pages a file of that size has.
func pages(size int64) int64 {
	n := size / PageSize
	if size%PageSize > 0 {
		n++
	}
	return n
}

// Bytes returns how much data the set's pages are.
func (s *Set) Bytes() int64 {
	var n int64
	for i := range s.Files {
		n += s.Files[i].Bytes()
	}
	return n
}

// Bytes returns how much of the file is in the set.
func (f *File) Bytes() int64 {
	var n int64
	for _, e := range f.Extents {
		n += min(e.End()*PageSize, f.Size) - e.Page*PageSize
	}
	return n
}

// Stages returns the number of the last stage in the set, plus one. It is 0
// for an empty set.
func (s *Set) Stages() int {
	n := 0
	for i := range s.Files {
		for _, e := range s.Files[i].Extents {
			n = max(n, e.Stage+1)
		}
	}
	return n
}

// For returns what the set has about a file of an artifact, clamped to its
// size, or nil. The content decides; without a file of that content, one of
// the same title does, which may be an ancestor's.
func (s *Set) For(title, content string, size int64) *File {
	var found *File
	for i := range s.Files {
		f := &s.Files[i]
		if f.Content == content && content != "" {
			found = f
			break
		}
		if f.Title == title {
			found = f
		}
	}
	if found == nil {
		return nil
	}
	out := &File{Title: title, Content: content, Size: size, Extents: clamp(found.Extents, pages(size))}
	if len(out.Extents) == 0 {
		return nil
	}
	return out
}

// clamp returns the extents before page end.
func clamp(all []Extent, end int64) []Extent {
	n := sort.Search(len(all), func(i int) bool { return all[i].End() > end })
	if n == len(all) || all[n].Page >= end {
		return all[:n:n]
	}
	cut := append(all[:n:n], all[n])
	cut[n].Pages = end - cut[n].Page
	return cut
}

// check returns an error if the set is not as the types say.
func (s *Set) check() error {
	if s.Runs < 1 || s.Runs > maxRuns {
		return fmt.Errorf("%w: %d recordings", ErrInvalid, s.Runs)
	}
	seen := map[string]bool{}
	for i := range s.Files {
		f := &s.Files[i]
		if seen[f.Title] {
			return fmt.Errorf("%w: file %.64q occurs twice", ErrInvalid, f.Title)
		}
		seen[f.Title] = true
		if f.Title == "" || len(f.Title) > maxText || len(f.Content) > maxText || f.Size < 0 {
			return fmt.Errorf("%w: title, content or size of file %d", ErrInvalid, i)
		}
		if err := f.check(s.Runs); err != nil {
			return fmt.Errorf("%w: file %.64q: %w", ErrInvalid, f.Title, err)
		}
	}
	return nil
}

func (f *File) check(runs int) error {
	next, end := int64(0), pages(f.Size)
	for _, e := range f.Extents {
		switch {
		case e.Page < next:
			return fmt.Errorf("page %d overlaps or is out of order", e.Page)
		case e.Pages < 1 || e.Page > end || e.Pages > end-e.Page:
			return fmt.Errorf("%d pages at page %d of %d", e.Pages, e.Page, end)
		case e.Stage < 0 || e.Stage > MaxStage:
			return fmt.Errorf("stage %d", e.Stage)
		case e.Runs < 1 || e.Runs > runs:
			return fmt.Errorf("a page seen in %d of %d recordings", e.Runs, runs)
		}
		next = e.End()
	}
	return nil
}
