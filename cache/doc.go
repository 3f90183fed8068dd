// Package cache keeps the files of artifacts on disk and fetches missing bytes
// when they are read. It knows no registry and no FUSE: it asks a [Source] for
// bytes of stored blobs.
//
// This package decides what to fetch next, for whom, and what becomes of it. A
// piece is the unit: a stretch of a file's payload that is fetched, checked,
// written and marked as one. A span is a run of pieces that somebody wants. A
// job is one request that fetches a span or its beginning. A flight is one piece
// on its way, with its waiters. A stream fetches a blob that can only be read
// from its start.
//
// Below it are rooms of their own: cached files on disk (internal/disk), pieces
// in memory and not on disk (internal/overlay), how much may be written
// (internal/quota), what the directory holds (internal/inventory), and readers
// that read in order (internal/readahead).
//
// No mutex that every read or every job takes is held over I/O, and no fetch
// waits long for work that is done for all. docs/architecture.md has one miss
// from READ to answer, and the locks with their order and their exceptions.
package cache
