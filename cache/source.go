package cache

import (
	"errors"
	"io"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// What a cache fetches from.
type (
	// Source reads stored blobs.
	Source = transport.Source
	// Mirrored is a Source that can get the same bytes from several places.
	Mirrored = transport.Mirrored
	// Origin is a Source that names who stands for bytes without a digest.
	Origin = transport.Origin
	// Link is what has been learned about a source since the cache was opened.
	Link = transport.Stats
	// Histogram counts durations, in seconds.
	Histogram = transport.Histogram
)

// stored is the range of a part's blob from off on, n bytes long.
func (e *entry) stored(part int, off, n int64) transport.Range {
	p := &e.file.Parts[part]
	return transport.Range{Digest: p.Digest, Size: p.StoredSize, Off: off, N: n, Checked: e.grid.checked(part)}
}

// blame reports to the source that it sent wrong bytes, if err says that
// they were. body is what they came in, or nil.
func (e *entry) blame(p *layout.Part, body io.ReadCloser, err error) {
	var wrong *contentError
	if errors.As(err, &wrong) {
		wrong.elsewhere = e.link.Blame(p.Digest, body)
	}
}
