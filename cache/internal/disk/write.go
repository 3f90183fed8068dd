package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
)

// Incoming is the payload of a piece on its way to the disk.
type Incoming struct {
	Piece    int
	Payload  []byte
	Verified bool   // a digest of the artifact vouches for it
	By       string // where it comes from; one of Finders
	Drops    int64  // what File.Drops was when it came
	Clone    *Clone // where the same bytes lie in another file; may be nil
	Spare    bool   // readers can have it from memory, and fetch it again
	Read     bool   // fetched for a reader: it is wanted once

	sum    uint64
	summed bool
}

// Sum returns the checksum of the payload.
func (p *Incoming) Sum() uint64 {
	if !p.summed {
		p.sum, p.summed = Sum(p.Payload), true
	}
	return p.sum
}

// ErrOvertaken is the error of a piece that came too late to be put on disk: it
// is to be fetched again, unless it is there.
var ErrOvertaken = errors.New("another process has changed the piece meanwhile")

// MakeWay prepares the place of a piece. kept is true if the same piece or a
// verified one is present: readers and the kernel may be reading it, so it is
// not overwritten. MakeWay discards any other piece, so that nobody reads it
// while it is replaced. word is the piece's word afterwards.
func (f *File) MakeWay(p *Incoming) (word Word, kept bool) {
	for sum := p.Sum(); ; {
		word = f.State.Word(p.Piece)
		switch {
		case !word.Readable():
			if handed, other := f.State.OtherHanded(p.Piece, sum); !other || handed != word {
				return word, false
			}
		case word.HasSum(sum):
			if p.Verified {
				f.State.SetVerified(p.Piece, sum)
			}
			return word, true
		case word.Verified():
			return word, true
		}
		f.Discard(p.Piece, p.Piece+1, Found{By: p.By, Word: word})
	}
}

// mostOvertaken bounds how often Write tries again.
const mostOvertaken = 5

// Write writes a piece, for which there is room, and marks it present. Between
// any two steps another process may put the piece there and seal the file,
// since it waits only a short time for this process. So the word is read again
// before the data is written, and must be unchanged after that. The error is ErrOvertaken or the disk's.
func (f *File) Write(p *Incoming) error {
	if err := f.State.reserve(p.Piece); err != nil {
		return err
	}
	for range mostOvertaken {
		f.dir.hooks.Before("write")
		word, kept := f.MakeWay(p)
		if kept {
			return nil
		}
		if !p.Verified && f.Drops() != p.Drops {
			break // it may be what was found wrong
		}
		f.dir.hooks.Before("write data")
		if err := f.writeData(p); err != nil {
			return err
		}
		f.dir.hooks.Before("mark")
		if f.State.put(p.Piece, word, p.Sum(), p.Verified) {
			return nil
		}
		if !f.overtaken(p, word) && !p.Verified {
			break
		}
	}
	return ErrOvertaken
}

// overtaken handles a piece whose word changed while its data was written. If
// another process has marked other bytes as present, overtaken discards the
// piece, because this process has overwritten them. It returns true if the piece
// is still missing and its turn has not moved.
func (f *File) overtaken(p *Incoming, old Word) bool {
	word := f.State.Word(p.Piece)
	if word.Present() && !word.HasSum(p.Sum()) {
		f.Discard(p.Piece, p.Piece+1, Found{By: p.By, Cause: ErrOvertaken, Word: word})
	}
	return !word.Present() && word&WordTurn == old&WordTurn
}

func (f *File) writeData(p *Incoming) error {
	off, _ := f.Grid.Extent(p.Piece)
	rest := p.Payload
	for run := range f.Layout.Map.Payload(off, int64(len(rest))) {
		if p.Clone != nil && run.Length == int64(len(p.Payload)) && p.Clone.into(f.Data, run.Offset) {
			break
		}
		if _, err := f.Data.WriteAt(rest[:run.Length], run.Offset); err != nil {
			return err
		}
		rest = rest[run.Length:]
		crashpoint.Reach("run written")
	}
	crashpoint.Reach("piece written")
	return nil
}

// Clone is a piece of another file whose blocks a copy may share.
type Clone struct {
	from *File
	off  int64 // in its data file
	n    int64
	i    int
	word Word // of the piece; what is cloned is right only while it has that
}

// CloneOf returns where piece i lies if it is one stretch that begins at a
// block, else nil.
func (f *File) CloneOf(i int, word Word) *Clone {
	s := f.Grid.Stretch(i, i+1)
	_, n := f.Grid.Extent(i)
	if s.N != n || s.Off%pageSize != 0 || n%pageSize != 0 {
		return nil
	}
	return &Clone{from: f, off: s.Off, n: n, i: i, word: word}
}

// into shares the piece's blocks with dst at off. It reports whether the file
// system can do that.
func (c *Clone) into(dst *os.File, off int64) bool {
	if off%pageSize != 0 {
		return false
	}
	err := unix.IoctlFileCloneRange(int(dst.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.from.Data.Fd()), Src_offset: uint64(c.off), Src_length: uint64(c.n), Dest_offset: uint64(off),
	})
	return err == nil && c.from.State.Word(c.i) == c.word
}
