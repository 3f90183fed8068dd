// Package transport gets bytes of stored blobs from a Source.
//
// It owns what has to be known of the way there: whether the registry
// honours Range, how long it takes to answer, how fast it sends, when it
// wants to be left alone, and which of its mirrors sent wrong bytes. It
// goes on where a request broke, joins one that stands still with another,
// and keeps to the rate limit.
//
// It never decides which bytes are wanted, never keeps any, and never
// compares them with a digest: that is for the two schedulers that stand on
// it, package cache (on demand) and package direct (in order). It knows
// nothing of HTTP.
//
// Read source.go first, for the door to the registry; then link.go, for
// what a Link offers; body.go for one range, hedge.go for when its request
// gets a double, pressure.go for when the machine is too busy to tell,
// reader.go for several requests in a row, and measure.go for what is
// learned from all of them.
package transport
