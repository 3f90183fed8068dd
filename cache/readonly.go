package cache

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// A cache on a read-only file system, or one that this user may only read,
// is used as it is: what it holds is served from it, and what is missing is
// fetched and passed on without being kept.

// openReadOnly opens the entry's files to read them. What is missing there
// is not made.
func (e *entry) openReadOnly() error {
	sf, err := e.openInUse(os.O_RDONLY)
	if err != nil {
		return err
	}
	if e.state, err = openStateReadOnly(sf, e.key, e.grid.pieces()); err != nil {
		_ = sf.Close()
		return err
	}
	e.unkept = true
	e.data, err = e.cache.root.OpenFile(e.path(".data"), os.O_RDONLY|openFlags, 0)
	if err == nil {
		var info fs.FileInfo
		if info, err = e.data.Stat(); err == nil && (!info.Mode().IsRegular() || info.Size() != e.file.Size()) {
			err = errDamaged
		}
	}
	if err != nil {
		e.closeFiles()
	}
	return err
}

// inMemory says that nothing of the file is on disk.
func (e *entry) inMemory() bool { return e.unkept && !e.state.readOnly }

// openStateReadOnly maps a state file that can only be read. The header is
// that of all processes; of the words there is a private mapping, whose
// pages are the file's until this process finds out something about them.
func openStateReadOnly(f *os.File, key string, pieces int) (*state, error) {
	if err := lock(f, unix.F_RDLCK, lockSetup, 1); err != nil {
		return nil, err
	}
	defer unlock(f, lockSetup, 1)
	return openReadOnlyLocked(f, key, pieces)
}

func openReadOnlyLocked(f *os.File, key string, pieces int) (*state, error) {
	size := int64(stateHeader + 8*pieces)
	if info, err := f.Stat(); err != nil || info.Size() != size {
		return nil, fmt.Errorf("%w: it has not %d bytes (%v)", errDamaged, size, err)
	}
	mem, err := mapFile(f, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &state{file: f, mem: mem, readOnly: true}
	if s.own, err = mapFile(f, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
		s.unmap()
		return nil, err
	}
	s.words = wordsOf(s.own)
	if head := header(key, pieces); !bytes.Equal(mem[:len(head)], head) {
		s.unmap()
		return nil, fmt.Errorf("%w: header", errDamaged)
	}
	if s.intactAt = s.intact(); !s.intactAt && !s.thisBoot() {
		s.suspectAll()
	}
	return s, nil
}
