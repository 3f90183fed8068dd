package cache

import (
	"context"
	"crypto/sha256"
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
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// entry is one cached file, open in this process.
type entry struct {
	cache *Cache
	key   string
	file  *layout.File
	grid  *grid
	link  *transport.Link
	state *state
	data  *os.File // read and write, in the file's own layout
	users int      // under Cache.mu

	ctx  context.Context // ends when the entry is closed, or the cache
	stop context.CancelFunc
	jobs sync.WaitGroup // what works with the files; see use

	unkept  bool         // its files take no data: they can only be read, or are in memory, because the disk refused them
	refused error        // why
	asked   atomic.Bool  // waits in Cache.checks
	drops   atomic.Int64 // how often a part was forgotten: what came before that may be wrong
	reading tracker      // who reads how, for readahead

	changes  changes    // pieces that were taken back, and who keeps copies
	refuting sync.Mutex // held while it is decided whether a part is wrong
	granules granules   // of a packed file

	donors donors // files that this one copies from

	mu        sync.Mutex
	closing   bool
	flights   map[int]*flight           // by piece
	streams   map[int]bool              // parts that are being streamed
	bad       map[int]int               // pieces whose bytes were wrong, how often
	strikes   map[int]int               // parts that were wrong as a whole, how often
	rot       map[int]bool              // pieces of which the disk has given back other bytes than were written
	lost      map[int]bool              // pieces that the disk did not give back
	condemned map[int]error             // parts that are out of service, why
	proofs    map[int]*proof            // parts that are being compared for readers who wait
	vouched   map[int][sha256.Size]byte // digests of pieces that are not on disk, of parts that were right
	backing   *os.File                  // read-only, for the kernel; opened once
}

// openEntry opens or makes the three files of an entry. What is damaged
// is removed and made anew, once.
func (c *Cache) openEntry(key string, f *layout.File, l *transport.Link) (*entry, error) {
	e := &entry{
		cache: c, key: key, file: f, grid: newGrid(f), link: l,
		flights: map[int]*flight{}, streams: map[int]bool{}, bad: map[int]int{}, strikes: map[int]int{}, condemned: map[int]error{},
		proofs: map[int]*proof{},
	}
	e.ctx, e.stop = context.WithCancel(c.ctx)
	err := e.openFiles()
	if err == nil && e.state.unsafe() {
		e.closeFiles()
		err = errUnsafe
	}
	if errors.Is(err, errDamaged) || errors.Is(err, errUnsafe) {
		c.log.Warn("cached file is made anew", "file", f.Name, "cause", err)
		gone := c.remove(key)
		if gone == nil || errors.Is(gone, errInUse) && errors.Is(err, errUnsafe) {
			err = e.openFiles()
		} else {
			err = gone
		}
	}
	if err != nil && e.mayDoWithout(err) {
		e.refused = err
		if !readOnly(err) { // else it is said when something is fetched
			c.notKept(f.Name, err)
		}
		if !readOnly(err) || e.openReadOnly() != nil {
			err = e.openUnkept()
		} else {
			err = nil
		}
	}
	if err != nil {
		e.stop()
		return nil, err
	}
	if r := e.record(); !e.inMemory() {
		c.index.add(key, &r, time.Now())
	}
	_, _, e.changes.wrong = e.state.taken()
	e.checkComplete()
	return e, nil
}

// mayDoWithout says that the file is served although it cannot be kept. A
// directory that is missing could not be made.
func (e *entry) mayDoWithout(err error) bool {
	return diskRefuses(err) || errors.Is(err, errInUse) || errors.Is(err, errHeld) || errors.Is(err, errDamaged) || errors.Is(err, fs.ErrNotExist)
}

// errUnsafe says that a file's data may be in memory alone. It can be read
// for as long as somebody has it open.
var errUnsafe = errors.New("the disk has failed to take its data")

func (e *entry) path(suffix string) string { return path.Join(dirFiles, e.key+suffix) }

func (e *entry) openFiles() error {
	root := e.cache.root
	sf, err := e.openInUse(os.O_RDWR | os.O_CREATE)
	if err != nil {
		return err
	}
	e.state, err = openState(sf, e.key, e.grid.pieces())
	if err != nil {
		_ = sf.Close()
		return err
	}
	e.data, err = root.OpenFile(e.path(".data"), os.O_RDWR|os.O_CREATE|openFlags, 0o600)
	if err == nil {
		err = e.checkData()
	}
	if err == nil {
		err = e.writeRecord()
	}
	if err != nil {
		e.closeFiles()
		return err
	}
	e.touch()
	return nil
}

// openInUse opens the state file and takes the lock that says so: nobody
// evicts a file under it. One that was evicted just before is made again.
func (e *entry) openInUse(flags int) (*os.File, error) {
	for {
		f, err := e.cache.root.OpenFile(e.path(".state"), flags|openFlags, 0o600)
		if err != nil {
			return nil, err
		}
		err = lock(f, unix.F_RDLCK, lockInUse, 1)
		var gone bool
		if err == nil {
			gone, err = unlinked(f)
		}
		if err == nil && !gone {
			return f, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// diskRefuses says that err is about the disk, not about the file.
func diskRefuses(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EACCES, unix.EPERM, unix.EIO, unix.EMFILE, unix.ENFILE, unix.EFBIG, unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOLCK, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// readOnly says that err is about what may only be read.
func readOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}

// openUnkept gives the entry files in memory that stay empty: what is
// fetched passes through to the readers.
func (e *entry) openUnkept() error {
	e.unkept = true
	var err error
	if e.data, err = memoryFile("epochfs data"); err != nil {
		return err
	}
	f, err := memoryFile("epochfs state")
	if err == nil {
		err = e.data.Truncate(e.file.Size())
	}
	if err == nil {
		if e.state, err = openState(f, e.key, e.grid.pieces()); err != nil {
			_ = f.Close()
		}
	}
	if err != nil {
		e.closeFiles()
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
func (e *entry) checkData() error {
	info, err := e.data.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file: %w", e.path(".data"), fs.ErrInvalid)
	}
	size := e.file.Size()
	if info.Size() == size {
		return nil
	}
	damaged := false
	e.state.each(func(i int) { damaged = damaged || e.state.word(i)&wordPresent != 0 })
	if damaged {
		return fmt.Errorf("%w: data has %d bytes, not %d", errDamaged, info.Size(), size)
	}
	crashpoint.Reach("data made")
	return e.data.Truncate(size)
}

func (e *entry) closeFiles() {
	if e.state != nil {
		e.state.unmap()
		_ = e.state.file.Close() // and with it all locks
		e.state = nil
	}
	if e.data != nil {
		_ = e.data.Close()
		e.data = nil
	}
	if e.backing != nil {
		_ = e.backing.Close()
		e.backing = nil
	}
}

// shut ends the entry's fetches. From now on only what is present is read.
func (e *entry) shut() {
	e.mu.Lock()
	e.closing = true
	for i, fl := range e.flights {
		if !fl.running {
			e.landLocked(i, fs.ErrClosed, nil)
		}
	}
	e.mu.Unlock()
	e.changes.quiet()
	e.stop()
}

// close waits for the entry's jobs and lets go of its files.
func (e *entry) close() {
	e.shut()
	e.jobs.Wait()
	e.cache.spare.forget(e)
	if !e.unkept {
		e.touch()
	}
	e.returnDonors()
	e.closeFiles()
}

// checkComplete looks whether the file has become complete, and has it
// verified and sealed if so.
func (e *entry) checkComplete() {
	if !e.state.hasAll(0, e.grid.pieces()) {
		return
	}
	e.returnDonors()
	if !e.state.sealed() {
		e.cache.askCheck(e)
	}
}

// use takes part in keeping the entry's files open for a job. It fails
// once the entry is being closed.
func (e *entry) use() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.jobs.Add(1)
	return true
}

func (e *entry) unuse() { e.jobs.Done() }
