// Package packed reads and writes the index of a packed file: where each
// granule of the file lies in the artifact's packs.
//
// A granule is the data between two multiples of the granule size in the
// file, without holes. The slots of a file are those stretches, counted
// from its start; a slot that holds no data has no granule. A pack is a
// blob of granules, each one zstd frame. A section is a run of slots whose
// part of the index is one zstd frame, so that it can be fetched alone.
//
// The index is a blob: the frames of its sections, ascending, and then the
// frame of its head. The head holds the file's map, its packs, and the
// digest of every section. Its own digest stands in the config blob of the
// artifact, so everything below it is verified before use.
//
// The package owns the bytes of the index and their bounds. It never reads
// a pack, and it does no I/O.
package packed
