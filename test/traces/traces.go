// Package traces has recordings of what a real guest did with its memory, as
// data for tests and measurements: Debian 12 with 1 GiB, at work for
// minutes.
package traces

import (
	"bytes"
	"compress/gzip"
	_ "embed" // the data
	"encoding/json"
	"fmt"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

//go:embed family.json.gz
var family []byte

//go:embed touches.json.gz
var touches []byte

// Run is consecutive pages: the first, and how many.
type Run [2]int64

// Family is three memories of one guest, "m1" to "m3", of which the second
// was saved 30 s and the third 2 min after the one before.
type Family struct {
	Page      int64             `json:"page"` // bytes
	Snapshots map[string]Memory `json:"snapshots"`
	Changed   map[string][]Run  `json:"changed"` // pages that are not the same, by "m1-m2" and "m2-m3"
}

// Memory is a guest's memory.
type Memory struct {
	Size int64 `json:"size"`      // bytes
	Data []Run `json:"data_runs"` // pages that hold data
}

// ReadFamily returns the family.
func ReadFamily() (*Family, error) {
	f := new(Family)
	return f, read(family, f)
}

// Touches are the pages that a guest used after it was resumed, each once,
// in the order of their first use.
type Touches struct {
	Memory
	Page    int64      `json:"page"`    // bytes
	Touches [][2]int64 `json:"touches"` // milliseconds since the guest ran, page
}

// ReadTouches returns the touches.
func ReadTouches() (*Touches, error) {
	t := new(Touches)
	return t, read(touches, t)
}

func read(packed []byte, v any) error {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		err = json.NewDecoder(z).Decode(v)
	}
	if err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

// Map returns where a memory of pages of that many bytes holds data, up to
// size bytes, or in all if size is 0.
func (m *Memory) Map(page, size int64) (*sparse.Map, error) {
	if size == 0 {
		size = m.Size
	}
	var segs []sparse.Segment
	for _, r := range m.Data {
		off := r[0] * page
		if n := min(r[1]*page, size-off); n > 0 {
			segs = append(segs, sparse.Segment{Offset: off, Length: n})
		}
	}
	return sparse.New(segs, size)
}
