package cache

import "github.com/cocoonstack/epochfs/internal/transport"

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
