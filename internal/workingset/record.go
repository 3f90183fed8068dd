package workingset

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Touch is the first touch of a page.
type Touch struct {
	File  int           // index of the file in the artifact
	Page  int64         // of the file
	After time.Duration // since the beginning of the recording
}

// FromTouches returns the set of one recording. files are those of the
// artifact, without extents. Stages count from the first touch; of several
// touches of a page the earliest counts; pages beyond a file's end do not.
func FromTouches(files []File, touches []Touch) *Set {
	r := NewRecorder(files, 0)
	sorted := slices.Clone(touches)
	slices.SortStableFunc(sorted, func(a, b Touch) int { return cmp.Compare(a.After, b.After) })
	for _, t := range sorted {
		r.touch(t)
	}
	return r.Set()
}

// Recorder notes the first touch of each page. It takes a byte a page of the
// stretches that are touched. It is safe for concurrent use.
type Recorder struct {
	limit int64 // bytes; 0 for none

	mu    sync.Mutex
	files []recorded
	begun bool
	first time.Duration // After of the first touch
	last  time.Duration // After of the last touch of a new page
	fresh int64         // pages
}

type recorded struct {
	File
	blocks map[int64]*block // by their first page's number, divided by blockPages
}

// block has of each page its stage plus one, or 0 for an untouched page.
type block [blockPages]uint8

const blockPages = 512

// NewRecorder returns a recorder of touches of an artifact's files, which
// takes no new page after limit bytes; 0 is without a limit.
func NewRecorder(files []File, limit int64) *Recorder {
	r := &Recorder{limit: limit}
	for _, f := range files {
		f.Extents = nil
		r.files = append(r.files, recorded{File: f, blocks: map[int64]*block{}})
	}
	return r
}

// Touch notes that n bytes at off of a file were read at the given time
// after the beginning of the recording. It returns the number of pages that
// were not touched before.
func (r *Recorder) Touch(file int, off, n int64, after time.Duration) (fresh int) {
	if file < 0 || file >= len(r.files) || off < 0 || n <= 0 {
		return 0
	}
	n = min(n, r.files[file].Size-off)
	for page := off / PageSize; page*PageSize < off+n; page++ {
		if r.touch(Touch{File: file, Page: page, After: after}) {
			fresh++
		}
	}
	return fresh
}

// touch reports whether the page is a new one.
func (r *Recorder) touch(t Touch) bool {
	if t.File < 0 || t.File >= len(r.files) {
		return false
	}
	f := &r.files[t.File]
	if t.Page < 0 || t.Page >= pages(f.Size) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := f.blocks[t.Page/blockPages]
	if b != nil && b[t.Page%blockPages] != 0 {
		return false
	}
	if r.limit > 0 && (r.fresh+1)*PageSize > r.limit {
		return false
	}
	if b == nil {
		b = new(block)
		f.blocks[t.Page/blockPages] = b
	}
	if !r.begun {
		r.begun, r.first = true, t.After
	}
	b[t.Page%blockPages] = uint8(1 + Stage(t.After-r.first))
	r.last = max(r.last, t.After)
	r.fresh++
	return true
}

// Recorded returns how many bytes of pages were touched, and when the last
// new one was.
func (r *Recorder) Recorded() (bytes int64, last time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fresh * PageSize, r.last
}

// Set returns what was recorded until now, as a set of one recording. Files
// that were not touched are left out.
func (r *Recorder) Set() *Set {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Set{Runs: 1}
	for i := range r.files {
		f := r.files[i].File
		f.Extents = r.files[i].extents()
		if len(f.Extents) > 0 {
			s.Files = append(s.Files, f)
		}
	}
	return s
}

func (f *recorded) extents() []Extent {
	var numbers []int64
	for n := range f.blocks {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	var out []Extent
	for _, n := range numbers {
		for i, stage := range f.blocks[n] {
			if stage > 0 {
				out = appendExtent(out, Extent{Page: n*blockPages + int64(i), Pages: 1, Stage: int(stage) - 1, Runs: 1})
			}
		}
	}
	return out
}
