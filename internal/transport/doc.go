// Package transport reads stored blobs from a Source.
//
// It owns all knowledge about the path to the registry: whether the registry
// honours Range, how fast it answers and sends, when it wants to be left
// alone, and which of its mirrors sent wrong bytes. It resumes broken
// requests, hedges stalled ones with a second request, and keeps to the rate
// limit.
//
// It never decides which bytes to fetch, never stores any, and never
// compares them with a digest: its two schedulers do, package cache (on
// demand) and package direct (in order). It knows nothing of HTTP.
//
// Read source.go first, for the interface to the registry; then link.go, for
// what a Link offers; body.go for one range, hedge.go for when its request
// gets a double, pressure.go for when the machine is too busy to detect a
// stall, reader.go for consecutive requests, and measure.go for the
// measurements of all of them.
package transport
