package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Mode is what a cached file is opened for.
type Mode int

const (
	// Keep is for a file that is read and filled. It is made if there is none.
	Keep Mode = iota
	// Read changes nothing on disk: only this process knows what it finds out
	// about pieces.
	Read
	// Lend is for a file that is copied from. No data is written, but wrong
	// pieces become missing for all processes, if the state can be written. It waits
	// for no lock: a process that is setting the file up, or evicting it, may
	// be stopped.
	Lend
	// Inspect is Lend, but waits for locks.
	Inspect
	// InMemory is for a file of which nothing is on disk. It has a state and
	// data in memory that stay empty.
	InMemory
)

// ErrUnsafe is the error of a file whose data may be in memory alone. It can be
// read for as long as somebody has it open.
var ErrUnsafe = errors.New("the disk has failed to take its data")

// File is an open cached file. Its lock keeps it from being evicted. It is safe
// for concurrent use.
type File struct {
	Key    string
	Layout *layout.File
	Grid   *Grid
	State  *State
	Data   *os.File // in the file's own layout; written to in mode Keep alone
	Pages  Pages    // of Data

	dir     *Dir
	mode    Mode
	beside  Beside
	drops   atomic.Int64
	changes changes

	mu      sync.Mutex
	backing *os.File // read-only, for the kernel; opened once
}

// Beside is what a file's user has of it besides what is on disk.
type Beside interface {
	// Drop drops what is held in memory of piece i, and reports whether there
	// was anything. It is called under a lock of the file.
	Drop(i int) bool
	// Source returns the name of where the file's bytes come from.
	Source() string
	// Unsealed is called when the seal was taken off and nothing was taken
	// back: somebody else was quicker, and the file may be complete.
	Unsealed()
}

// Open opens the cached file with the given key, which is l cut by g. beside
// may be nil. The error is ErrDamaged if the files cannot be believed, and
// ErrHeld if somebody has a lock for too long.
func (d *Dir) Open(key string, l *layout.File, g *Grid, mode Mode, beside Beside) (f *File, err error) {
	f = &File{Key: key, Layout: l, Grid: g, dir: d, mode: mode, beside: beside}
	f.Pages.file = f
	defer func() {
		if err != nil {
			f.Close()
			f = nil
		}
	}()
	if mode == InMemory {
		return f, f.openInMemory()
	}
	if err = f.openState(); err != nil {
		return f, err
	}
	flags := os.O_RDONLY
	if mode == Keep {
		flags = os.O_RDWR | os.O_CREATE
	}
	if f.Data, err = d.OpenFile(f.path(".data"), flags); err != nil {
		return f, err
	}
	switch mode {
	case Keep:
		if err = f.checkData(); err == nil {
			err = d.writeRecord(key, l, g)
		}
		if err == nil {
			f.Touch()
		}
	case Read, Inspect:
		if info, e := f.Data.Stat(); e != nil || !info.Mode().IsRegular() || info.Size() != l.Size() {
			err = errors.Join(ErrDamaged, e)
		}
	}
	if _, _, wrong := f.State.taken(); err == nil {
		f.changes.wrong = wrong
	}
	return f, err
}

func (f *File) path(suffix string) string { return path.Join(Files, f.Key+suffix) }

// openState opens and maps the state file. One that was evicted just before is
// made again, or opened again.
func (f *File) openState() error {
	take := Lock
	if f.mode == Lend {
		take = lockNow
	}
	for {
		sf, readOnly, err := f.openStateFile()
		if err != nil {
			return err
		}
		err = take(sf, unix.F_RDLCK, LockInUse, 1)
		var gone bool
		if err == nil {
			gone, err = unlinked(sf)
		}
		if err == nil && !gone {
			f.State, err = mapLocked(sf, f.Key, f.Grid.Pieces(), readOnly, take)
		}
		if err == nil && !gone {
			return nil
		}
		_ = sf.Close()
		if err != nil {
			return err
		}
	}
}

// openStateFile opens the state file as the mode says.
func (f *File) openStateFile() (sf *os.File, readOnly bool, err error) {
	name := f.path(".state")
	switch f.mode {
	case Keep:
		sf, err = f.dir.OpenFile(name, os.O_RDWR|os.O_CREATE)
		return sf, false, err
	case Lend, Inspect:
		if f.mode == Lend && f.dir.readOnly {
			break
		}
		if sf, err = f.dir.OpenFile(name, os.O_RDWR); !IsReadOnly(err) {
			return sf, false, err
		}
	}
	sf, err = f.dir.OpenFile(name, os.O_RDONLY)
	return sf, true, err
}

// mapLocked maps a state file under its set-up lock.
func mapLocked(sf *os.File, key string, pieces int, readOnly bool, take func(f *os.File, kind int16, off, n int64) error) (*State, error) {
	kind, open := int16(unix.F_WRLCK), mapState
	if readOnly {
		kind, open = unix.F_RDLCK, mapStateReadOnly
	}
	if err := take(sf, kind, LockSetup, 1); err != nil {
		return nil, err
	}
	defer Unlock(sf, LockSetup, 1)
	return open(sf, key, pieces)
}

// openInMemory gives the file a state and data in memory that stay empty: what
// is fetched passes through to the readers.
func (f *File) openInMemory() error {
	var err error
	if f.Data, err = memoryFile("epochfs data"); err != nil {
		return err
	}
	if err := f.Data.Truncate(f.Layout.Size()); err != nil {
		return err
	}
	sf, err := memoryFile("epochfs state")
	if err != nil {
		return err
	}
	if f.State, err = mapLocked(sf, f.Key, f.Grid.Pieces(), false, Lock); err != nil {
		_ = sf.Close()
	}
	return err
}

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// checkData gives a new data file its size. One that has lost its bytes
// while the state says otherwise is damage.
func (f *File) checkData() error {
	info, err := f.Data.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", f.path(".data"), fs.ErrInvalid)
	}
	size := f.Layout.Size()
	if info.Size() == size {
		return nil
	}
	damaged := false
	f.State.Each(func(i int) { damaged = damaged || f.State.Word(i).Present() })
	if damaged {
		return fmt.Errorf("%w: data has %d bytes, not %d", ErrDamaged, info.Size(), size)
	}
	crashpoint.Reach("data made")
	return f.Data.Truncate(size)
}

// Close closes the file, and with it gives back all its locks.
func (f *File) Close() {
	if f.State != nil {
		f.State.unmap()
		_ = f.State.file.Close()
		f.State = nil
	}
	if f.Data != nil {
		_ = f.Data.Close()
		f.Data = nil
	}
	if f.backing != nil {
		_ = f.backing.Close()
		f.backing = nil
	}
}

// OnDisk reports whether anything of the file is on disk.
func (f *File) OnDisk() bool { return f.mode != InMemory }

// Keeps reports whether pieces can be written.
func (f *File) Keeps() bool { return f.mode == Keep }

// ReadOnly reports whether nothing of the file can be changed, its words
// included.
func (f *File) ReadOnly() bool { return f.State.readOnly }

// Touch notes that the file is being used, for the order of eviction.
func (f *File) Touch() {
	now := unix.NsecToTimeval(time.Now().UnixNano())
	_ = unix.Futimes(int(f.State.file.Fd()), []unix.Timeval{now, now}) // only the order of eviction hangs on it
}

// Backing returns the data file for the kernel to read by itself, read-only
// and open until f is closed. It may be asked for only if the file is sealed.
func (f *File) Backing() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.backing == nil {
		// By its descriptor: the name may be another file's by now.
		b, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Data.Fd()), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		f.backing = b
	}
	return f.backing, nil
}

// Hold returns a descriptor that keeps the file from being evicted for as long
// as it is open, in this process or another. It is of an open file description
// of its own: the locks of fetches go with the process that fetches.
func (f *File) Hold() (*os.File, error) {
	hold, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.State.file.Fd()), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	// Nobody can have it exclusively: we have it shared.
	if err := Lock(hold, unix.F_RDLCK, LockInUse, 1); err != nil {
		_ = hold.Close()
		return nil, err
	}
	return hold, nil
}

// PartVerified reports whether all of a part is present and verified.
func (f *File) PartVerified(part int) bool {
	return f.State.AllVerified(f.Grid.Of(part))
}

// AllVerified reports whether all of the file is.
func (f *File) AllVerified() bool { return f.State.AllVerified(0, f.Grid.Pieces()) }

// Complete reports whether all of the file is present.
func (f *File) Complete() bool { return f.State.HasAll(0, f.Grid.Pieces()) }

// Cached returns how many bytes of the payload are present.
func (f *File) Cached() (n int64) {
	f.State.Each(func(i int) {
		if f.State.Has(i) {
			_, size := f.Grid.Extent(i)
			n += size
		}
	})
	return n
}

// source names where the file's bytes come from; it is empty if that is not
// known.
func (f *File) source() string {
	if f.beside == nil {
		return ""
	}
	return f.beside.Source()
}

// dropBeside is Beside.Drop.
func (f *File) dropBeside(i int) bool { return f.beside != nil && f.beside.Drop(i) }
