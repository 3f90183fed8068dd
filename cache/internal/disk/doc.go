// Package disk is the directory of a cache and each cached file in it: how it
// lies on disk, who may change what of it, and what happens to bytes that are
// wrong. It fetches nothing and decides nothing about what is to be fetched. Its
// only goroutine calls OnDrop.
//
// A cached file is three: KEY.data in the file's own layout, KEY.state with a
// word for each piece, KEY.meta with what the file is made of. docs/format.md
// has the bytes. [Dir.Open] opens them, in one of five modes.
//
// Read in this order: grid.go (where pieces lie), words.go (what is known of a
// piece), state.go (the mapped words, the seal), lock.go (locks between
// processes), file.go (an open file), data.go (reading), write.go (writing
// beside other processes), wrong.go and changes.go (taking pieces back), pages.go
// (the kernel's pages of a data file), dir.go and record.go (what else lies in
// the directory).
package disk
