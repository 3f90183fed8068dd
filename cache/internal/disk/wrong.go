package disk

// What found a present piece wrong, or where an Incoming comes from.
// These are the keys of Counts.Wrong.
const (
	ByStream    = "stream"    // all of a blob passed and had other bytes
	ByFetch     = "fetch"     // a request for a range brought other bytes
	ByCopy      = "copy"      // another cached file was copied from, or copied to
	ByLate      = "late"      // a piece that was written after it was handed over
	ByDigest    = "digest"    // a blob was hashed
	ByDisk      = "disk"      // the disk gave back something else than was written
	ByVerify    = "verify"    // the cache was verified
	ByElsewhere = "elsewhere" // another process found it
)

// Finders are all of these.
var Finders = []string{ByStream, ByFetch, ByCopy, ByLate, ByDigest, ByDisk, ByVerify, ByElsewhere}

// Found is how pieces were found wrong.
type Found struct {
	By    string
	Cause error        // may be nil
	Word  Word         // of the one piece that was compared; 0: whatever the words are
	Gone  func() []any // may be nil; called when nobody gets the pieces any more, for further attributes of the log line
}

// Discard gives up pieces [from, to), whose bytes are wrong, or differ from
// others that may be right. It is the only way in which a piece that somebody
// may have read is given up for that. The pieces become missing, and so are
// fetched again or, by the caller, replaced; the file is not sealed any more;
// every mount that shows them drops the kernel's pages; one line is logged, and
// the pieces are counted. With a word, nothing happens unless that is still the
// piece's. Discard returns how many pieces were present or held.
func (f *File) Discard(from, to int, found Found) int {
	if shown, done := f.dir.hooks.Shown(f.Key); shown != nil { // f may be open only to be read
		defer done()
		f = shown
	}
	if from == to {
		return 0
	}
	n := f.takeBack(from, to, found.Word, true)
	if n == 0 && found.Word != 0 {
		return 0
	}
	f.dir.hooks.Wrong(found.By, int64(max(n, 1)))
	var more []any
	if found.Gone != nil {
		more = found.Gone()
	}
	s := f.Grid.Stretch(from, to)
	line := []any{"file", f.Layout.Name, "offset", s.Off, "length", s.N, "found_by", found.By, "source", f.source(),
		"digest", f.Layout.Parts[f.Grid.Part(from)].Digest}
	if found.Cause != nil {
		line = append(line, "cause", found.Cause)
	}
	f.dir.hooks.Log.Error("wrong bytes were dropped", append(line, more...)...)
	return n
}

// TakeBack makes pieces [from, to) missing, on disk and in memory, and has
// those who keep copies of them drop these.
func (f *File) TakeBack(from, to int) { f.takeBack(from, to, 0, false) }

// takeBack is TakeBack. wrong counts the pieces as wrong. With a word, nothing
// happens unless that is still the one of piece from. It returns how many
// pieces were there.
func (f *File) takeBack(from, to int, word Word, wrong bool) (n int) {
	if word != 0 && f.State.Word(from) != word {
		return 0
	}
	if word == 0 {
		f.drops.Add(1)
		defer f.drops.Add(1) // a read that began meanwhile may have seen some of it
	}
	sealed := f.State.Sealed()
	f.State.Unseal() // before a word changes: a reader that sees the seal does not read words
	c := &f.changes
	c.mu.Lock()
	moved, done := f.State.taking()
	c.begun.Add(moved) // nothing that has to be noticed
	for i := from; i < to; i++ {
		gone := false
		if word == 0 {
			gone = f.State.Clear(i)
			gone = f.dropBeside(i) || gone
		} else if gone = f.State.withdraw(i, word); gone {
			f.dropBeside(i)
		}
		if gone {
			n++
		}
		if gone || word == 0 { // and reported below
			c.sawLocked(i, f.State.Word(i))
		}
	}
	if n > 0 || word == 0 {
		c.todoLocked(f.Grid.Stretch(from, to))
	}
	if wrong {
		c.wrong += done(n)
	} else {
		done(0)
	}
	c.ended += moved
	c.mu.Unlock()
	if n == 0 && sealed && f.beside != nil {
		f.beside.Unsealed()
	}
	return n
}

// Drops returns a number that changes whenever pieces are taken back, whatever
// their words were. What came before that may be wrong.
func (f *File) Drops() int64 { return f.drops.Load() }
