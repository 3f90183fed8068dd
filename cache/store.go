package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// incoming is the payload of a piece on its way to the disk.
type incoming struct {
	piece    int
	payload  []byte
	verified bool   // a digest of the artifact vouches for it
	by       string // where it comes from; see found
	drops    int64  // what entry.drops was when it came
	sum      uint64 // its checksum as in a word; set by store
	from     *clone // where the same bytes lie in another file; may be nil
}

// store puts a piece where it belongs in the data file and marks it present.
// An error means that the piece could not be kept, not that it is wrong; with
// errLooking comes what is closed when it can be tried again.
func (e *entry) store(p *incoming) (again <-chan struct{}, err error) {
	if e.unkept && readOnly(e.refused) {
		e.cache.notKept(e.file.Name, e.refused)
	}
	if e.unkept || e.isLost(p.piece) {
		return nil, errNotKept
	}
	p.sum = xxhash.Sum64(p.payload) & wordSum
	if _, kept := e.makeWay(p); kept {
		return nil, nil
	}
	again, err = e.cache.take(e.onDisk(p.piece, int64(len(p.payload))))
	if err != nil {
		if errors.Is(err, errFull) {
			e.cache.notKept(e.file.Name, err)
		}
		return again, err
	}
	return nil, e.write(p)
}

// makeWay looks at what is there of a piece. kept reports that it is that
// piece, or one that was verified: that is never written over, for others may
// read it, and the kernel. Other bytes are discarded first, so that nobody
// reads them while they are replaced. word is what the piece's word is then.
func (e *entry) makeWay(p *incoming) (word uint64, kept bool) {
	for {
		word = e.state.word(p.piece)
		switch {
		case word&(wordPresent|wordSuspect) != wordPresent:
			if handed, other := e.state.otherHanded(p.piece, p.sum); !other || handed != word {
				return word, false
			}
		case word&wordSum == p.sum:
			if p.verified {
				e.state.setVerifiedAs(p.piece, p.sum)
			}
			return word, true
		case word&wordVerified != 0:
			return word, true
		}
		e.discard(p.piece, p.piece+1, found{by: p.by, word: word})
	}
}

// mostOvertaken is how often a piece is written that others overtake.
const mostOvertaken = 5

// write is store when there is room. Between any two of its steps another
// process may have put the piece there, and sealed the file: one that waits
// for this one does not wait for long. So the word is looked at once more
// before the data is written, and must still be the same after that.
func (e *entry) write(p *incoming) error {
	if err := e.state.reserve(p.piece); err != nil {
		e.cache.noRoom()
		e.cache.notKept(e.file.Name, err)
		return err
	}
	for range mostOvertaken {
		e.cache.opts.before("write")
		word, kept := e.makeWay(p)
		if kept {
			return nil
		}
		if !p.verified && e.drops.Load() != p.drops {
			break // it may be what was found wrong
		}
		e.cache.opts.before("write data")
		if err := e.writeData(p); err != nil {
			e.cache.noRoom()
			e.cache.notKept(e.file.Name, err)
			return err
		}
		e.cache.opts.before("mark")
		if e.state.put(p.piece, word, p.sum, p.verified) {
			return nil
		}
		if !e.overtaken(p, word) && !p.verified {
			break
		}
	}
	return errOvertaken
}

// overtaken is called when a piece was written although its word is not old
// any more. What another process put there is not what lies there now. It
// reports whether nobody has put the piece there or taken it back.
func (e *entry) overtaken(p *incoming, old uint64) bool {
	word := e.state.word(p.piece)
	if word&wordPresent != 0 && word&wordSum != p.sum {
		e.discard(p.piece, p.piece+1, found{by: p.by, cause: errOvertaken, word: word})
	}
	return word&wordPresent == 0 && word&wordTurn == old&wordTurn
}

// errOvertaken says that a piece came too late to be put on disk: it is to be
// fetched again, unless it is there.
var errOvertaken = errors.New("another process has changed the piece meanwhile")

func (e *entry) writeData(p *incoming) error {
	off, _ := e.grid.extent(p.piece)
	rest := p.payload
	for run := range e.file.Map.Payload(off, int64(len(rest))) {
		if p.from != nil && run.Length == int64(len(p.payload)) && p.from.into(e.data, run.Offset) {
			break
		}
		if _, err := e.data.WriteAt(rest[:run.Length], run.Offset); err != nil {
			return err
		}
		rest = rest[run.Length:]
		crashpoint.Reach("run written")
	}
	crashpoint.Reach("piece written")
	return nil
}

// errNotKept says that a piece is not put on disk.
var errNotKept = errors.New("the file takes no data")

// onDisk is how many bytes of blocks a piece of n bytes may take: a page
// at each end of each of its runs may be new.
func (e *entry) onDisk(i int, n int64) int64 {
	off, _ := e.grid.extent(i)
	var runs int64
	for range e.file.Map.Payload(off, n) {
		runs++
	}
	return n + runs*pageSize
}

// pageSize is the block size that file systems use, in general.
const pageSize = 4096

// load reads the payload of piece i from the data file into buf, which
// has the piece's length.
func (e *entry) load(i int, buf []byte) error {
	off, _ := e.grid.extent(i)
	return e.loadPayload(off, buf)
}

// loadPayload reads payload bytes from off on, whatever pieces they are in.
func (e *entry) loadPayload(off int64, buf []byte) error {
	for run := range e.file.Map.Payload(off, int64(len(buf))) {
		if _, err := e.readDisk(buf[:run.Length], run.Offset); err != nil {
			return err
		}
		buf = buf[run.Length:]
	}
	return nil
}

// readDisk fills p from the data file's offset off on.
func (e *entry) readDisk(p []byte, off int64) (int, error) {
	if e.cache == nil { // a Local
		return e.data.ReadAt(p, off)
	}
	return e.cache.opts.readDisk(e.data, p, off)
}

// recheck looks at the checksum of a piece from before the last boot. It
// reports whether the piece may be used.
func (e *entry) recheck(i int) bool {
	_, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	if err := e.load(i, buf); err != nil {
		e.notGivenBack(err)
		e.state.clear(i)
		return false
	}
	return e.state.settle(i, xxhash.Sum64(buf))
}

// checkPiece compares a piece's payload with its own digest, where it has
// one or has been found to have. verified is false where there is none.
func (e *entry) checkPiece(i int, payload []byte) (verified bool, err error) {
	want, ok := e.grid.sum(i)
	if !ok {
		if want, ok = e.vouchedFor(i); !ok {
			return false, nil
		}
	}
	if sha256.Sum256(payload) != want {
		off, n := e.grid.extent(i)
		return false, e.wrong(e.grid.part(i), fmt.Sprintf("piece at %d, %d bytes", off, n))
	}
	return true, nil
}

// buffers are reused by size class: powers of two from 64 KiB to 32 MiB.
const (
	smallestBuffer = 16 // log2
	largestBuffer  = 25
)

var bufferPools [largestBuffer - smallestBuffer + 1]sync.Pool

func bufferClass(n int64) int {
	c := 0
	for c < len(bufferPools) && int64(1)<<(c+smallestBuffer) < n {
		c++
	}
	return c
}

// getBuffer returns a buffer of n bytes whose content is anything.
func getBuffer(n int64) []byte {
	c := bufferClass(n)
	if c == len(bufferPools) {
		return make([]byte, n)
	}
	if b, ok := bufferPools[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, int64(1)<<(c+smallestBuffer))
}

func putBuffer(b []byte) {
	if c := bufferClass(int64(cap(b))); c < len(bufferPools) && cap(b) == 1<<(c+smallestBuffer) {
		bufferPools[c].Put(&b)
	}
}
