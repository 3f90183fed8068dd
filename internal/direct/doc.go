// Package direct reads the payloads of an artifact's files straight from
// a registry, in order, over several connections, and has them kept where
// there is a Keeper. It is what materialize reads from.
//
// Why it is not the cache's engine: a mount's readers come in any order,
// so the cache fetches what is asked for and has to keep it. Here the
// order is known before the first byte moves: all parts of all files, one
// after another. So what is fetched next is never a guess, memory can be
// handed out in that order and taken back when a byte has been read, and
// a slow reader holds the connections back instead of having what came for
// him thrown away.
//
// What requests need is in package transport; here is when to make them.
//
// Words. A unit is what one request fetches: a whole part where that is
// small, for then its digest is looked at before a byte of it is used,
// else a stretch of its stored bytes. Units are begun in order, as long
// as there are connections and memory, and read in order. The head is the
// part that is being read; a reserve of memory is for it alone, so that
// what was fetched ahead can never stop it. Where the registry ignores
// Range, a blob is one stream that fills its units as it passes them; it
// is at most a few units ahead of what was read, and what memory is left
// goes to the blobs after it.
package direct
