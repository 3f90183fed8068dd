// Package transport gets bytes of stored blobs from a Source.
//
// It owns what has to be known of the way there: whether the registry
// honours Range, how long it takes to answer, how fast it sends, when it
// wants to be left alone, and which of its mirrors sent wrong bytes. It
// takes a broken blob up where it broke, and keeps to the rate limit.
//
// It never decides which bytes are wanted, never keeps any, and never
// compares them with a digest: that is for the two schedulers that stand on
// it, package cache (on demand) and package direct (in order). It knows
// nothing of HTTP.
package transport
