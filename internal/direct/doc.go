// Package direct reads the payloads of an artifact's files straight from a
// registry, in order and over several connections, and writes fetched bytes
// to a Cache if there is one. The command materialize uses it.
//
// It differs from the cache, whose readers come in any order, so that the
// cache fetches on demand and stores what it fetched. Here the order is
// known before the first byte is requested: all parts of all files, one
// after another. So the next request is never a guess, memory is assigned in
// order and freed after a byte was read, and a slow reader slows the
// connections down instead of losing what was fetched for it.
//
// Package transport sends the requests; this package decides when.
//
// A unit is what one request fetches: a whole part if that is small, so that
// its digest is verified before a byte of it is used, else a range of its
// stored bytes. Units are started in order, as connections and memory
// permit, and read in order. The head is the part that is being read. A
// reserve of memory belongs to the head alone, so that bytes fetched ahead
// can never block it. If the registry ignores Range, a blob is one stream
// that fills its units in turn; it may be a few units ahead of the reader,
// and the rest of the memory is for the blobs after it.
package direct
