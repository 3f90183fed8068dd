// Package cache keeps the files of artifacts on disk and fetches what is
// missing when it is read. It knows no registry and no FUSE: it asks a
// [Source] for bytes of stored blobs.
//
// Words. A piece is the unit of presence: a stretch of a file's payload
// that is fetched, checked, written and marked as one. A span is a run of
// pieces that somebody wants. A job is one request that fetches a span or
// its beginning. A flight is one piece on its way, with those who wait
// for it. A stream fetches a blob that can only be had from its start.
//
// On disk a cached file is three: KEY.data in the file's own layout,
// KEY.state with one word a piece, KEY.meta with what the file is made
// of. See docs/format.md for the bytes.
//
// No mutex is held over I/O, and no fetch waits long for work that is done
// for all: docs/architecture.md has the locks and their order.
package cache
