package disk

import (
	"errors"
	"os"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
)

// Sum returns the checksum of a piece's payload, of which a Word has the low
// bits.
func Sum(payload []byte) uint64 { return xxhash.Sum64(payload) }

// hole is the size from which on a hole is not read from disk, in bytes.
const hole = 32 << 10

// ReadAt fills p with the file from off on, which has payload [from, to).
// Large holes are not read from disk: the kernel would fill its page cache with
// zeros for them.
func (f *File) ReadAt(p []byte, off, from, to int64) error {
	done := int64(0) // of p
	pending := int64(0)
	flush := func() error {
		if pending == done {
			return nil
		}
		err := f.read(p[done:pending], off+done)
		done = pending
		return err
	}
	for run := range f.Layout.Map.Payload(from, to-from) {
		at := run.Offset - off
		if at-pending >= hole {
			if err := flush(); err != nil {
				return err
			}
			clear(p[done:at])
			done = at
		}
		pending = at + run.Length
	}
	if int64(len(p))-pending < hole {
		pending = int64(len(p))
	}
	if err := flush(); err != nil {
		return err
	}
	// No checksum is over small holes that were read along with the data.
	end := int64(0)
	for run := range f.Layout.Map.Payload(from, to-from) {
		clear(p[end : run.Offset-off])
		end = run.Offset - off + run.Length
	}
	clear(p[end:])
	return nil
}

// ReadPiece copies payload [from, to), which is of piece i, to where it belongs
// in p, which is the file from off on. If the disk has once failed to take
// data, it compares the piece with its checksum, and the error is ErrUnsafe if
// that does not agree.
func (f *File) ReadPiece(i int, p []byte, off, from, to int64) error {
	if f.State.Unsafe() {
		_, n := f.Grid.Extent(i)
		buf := buffers.Get(n)
		defer buffers.Put(buf)
		if err := f.Load(i, buf); err != nil {
			return err
		}
		f.Grid.Spread(p, off, i, buf)
		return nil
	}
	for run := range f.Layout.Map.Payload(from, to-from) {
		at := run.Offset - off
		if err := f.read(p[at:at+run.Length], run.Offset); err != nil {
			return err
		}
	}
	return nil
}

// Load reads the payload of piece i into buf, which has the piece's length. If
// the disk has once failed to take data, it compares that with the checksum,
// and the error is ErrUnsafe if it does not agree: what the kernel could not
// write it forgets, and then reads as it was before.
func (f *File) Load(i int, buf []byte) error {
	word := f.State.Word(i)
	if err := f.load(i, buf); err != nil {
		return err
	}
	if f.State.Unsafe() && !(word.Present() && word.HasSum(Sum(buf))) {
		return ErrUnsafe
	}
	return nil
}

func (f *File) load(i int, buf []byte) error {
	off, _ := f.Grid.Extent(i)
	return f.LoadPayload(off, buf)
}

// LoadPayload reads payload bytes from off on, whatever pieces they are in.
func (f *File) LoadPayload(off int64, buf []byte) error {
	for run := range f.Layout.Map.Payload(off, int64(len(buf))) {
		if err := f.read(buf[:run.Length], run.Offset); err != nil {
			return err
		}
		buf = buf[run.Length:]
	}
	return nil
}

// read fills p from the data file's offset off on.
func (f *File) read(p []byte, off int64) error {
	_, err := f.dir.hooks.Read(f.Data, p, off)
	return err
}

// Errors of LoadAsKept.
var (
	ErrGone      = errors.New("the piece is not there")
	ErrNotAsKept = errors.New("the disk gives back other bytes than were written")
)

// LoadAsKept reads piece i into buf and compares it with its checksum. word is
// the piece's; a piece that does not agree with it was read twice.
func (f *File) LoadAsKept(i int, buf []byte) (word Word, err error) {
	for range 2 { // it may have been replaced at the first look
		if word = f.State.Word(i); !word.Present() {
			return word, ErrGone
		}
		if err = f.load(i, buf); err == nil {
			if word.HasSum(Sum(buf)) {
				return word, nil
			}
			err = ErrNotAsKept
		}
	}
	return word, err
}

// Recheck compares a suspect piece with its checksum. It reports whether the
// piece may be read; if not, it is missing from now on. The error is the
// disk's.
func (f *File) Recheck(i int) (ok bool, err error) {
	_, n := f.Grid.Extent(i)
	buf := buffers.Get(n)
	defer buffers.Put(buf)
	if err := f.load(i, buf); err != nil {
		f.State.Clear(i)
		return false, err
	}
	return f.State.Settle(i, Sum(buf)), nil
}

// syncStep bounds how long a process that is killed may take to die: while
// it waits for the disk it cannot, and all the mount's readers wait for its
// end.
const syncStep = 4 << 20

// Sync puts the data on disk, in steps. It ends early with what stop returns.
func (f *File) Sync(stop func() error) error {
	fd, m := int(f.Data.Fd()), f.Layout.Map
	for off, ok := m.SeekData(0); ok; off, ok = m.SeekData(off + syncStep) {
		if err := stop(); err != nil {
			return err
		}
		if err := f.Pages.writeOut(off, min(syncStep, m.Size()-off)); err != nil {
			return err
		}
	}
	if err := unix.Fdatasync(fd); err != nil {
		return os.NewSyscallError("fdatasync", err)
	}
	return f.Pages.failedToWrite()
}

// Forget has the kernel forget what it has in memory of the data, so that reads
// come from the disk, unless somebody else uses the file. It reports whether
// somebody does.
func (f *File) Forget() (inUse bool) {
	inUse = InUse(f.State.file)
	if !inUse {
		_ = unix.Fadvise(int(f.Data.Fd()), 0, 0, unix.FADV_DONTNEED) // reads are right without
	}
	return inUse
}
