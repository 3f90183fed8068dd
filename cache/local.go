package cache

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Local is a cached file as it is found, for reading only: nothing is
// made, fetched or changed. It is safe for concurrent use.
type Local struct {
	entry *entry // with file, grid, state and data alone
}

// OpenLocal opens the cached form of f, from src, in the cache at dir.
// Where there is none that can be used, the error says fs.ErrNotExist.
func OpenLocal(dir string, f *layout.File, src Source) (*Local, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	g := newGrid(f)
	key := keyOf(f, g, src)
	e := &entry{file: f, grid: g, key: key}
	l := &Local{e}
	sf, err := root.OpenFile(e.path(".state"), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	if e.state, err = mapState(sf, key, e.grid.pieces()); err != nil {
		_ = sf.Close()
		return nil, err
	}
	if e.data, err = root.OpenFile(path.Join(dirFiles, key+".data"), os.O_RDONLY|openFlags, 0); err != nil {
		_ = l.Close()
		return nil, err
	}
	if info, err := e.data.Stat(); err != nil || info.Size() != f.Size() {
		_ = l.Close()
		return nil, fmt.Errorf("cached %q: %w", f.Name, fs.ErrNotExist)
	}
	return l, nil
}

// mapState maps a state file to read it. One that cannot be believed as
// it is, being damaged or from before the last boot, is as good as none.
func mapState(f *os.File, key string, pieces int) (*state, error) {
	if err := lock(f, unix.F_RDLCK, lockInUse, 1); err != nil {
		return nil, err
	}
	if gone, err := unlinked(f); err != nil || gone {
		return nil, fmt.Errorf("state of %s: %w", key, fs.ErrNotExist)
	}
	size := int64(stateHeader + 8*pieces)
	if info, err := f.Stat(); err != nil || info.Size() != size {
		return nil, fmt.Errorf("state of %s: %w", key, fs.ErrNotExist)
	}
	mem, err := mapFile(f, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	s := &state{file: f, mem: mem, words: wordsOf(mem)}
	if head := header(key, pieces); string(mem[:len(head)]) != string(head) || !s.thisBoot() && !s.intact() || s.unsafe() {
		s.unmap()
		return nil, fmt.Errorf("state of %s: %w", key, fs.ErrNotExist)
	}
	return s, nil
}

// Part returns the payload of a part of the file when all of it is there
// and was verified, else nil.
func (l *Local) Part(part int) io.Reader { return l.entry.verifiedPart(part) }

func (e *entry) verifiedPart(part int) io.Reader {
	if e.state.unsafe() || !e.partVerified(part) {
		return nil
	}
	p := &e.file.Parts[part]
	return io.NewSectionReader(payloadAt{e}, p.Offset, p.Length)
}

// payloadAt reads a file's payload that is all there.
type payloadAt struct{ entry *entry }

// ReadAt never has to tell the payload's end: who asks knows it.
func (r payloadAt) ReadAt(p []byte, off int64) (int, error) {
	if n := r.entry.file.PayloadSize() - off; n < int64(len(p)) {
		return 0, io.ErrUnexpectedEOF
	}
	if err := r.entry.loadPayload(off, p); err != nil {
		r.entry.loseWithin(off, int64(len(p)), err)
		return 0, err
	}
	return len(p), nil
}

// Close lets go of the file.
func (l *Local) Close() error {
	l.entry.closeFiles()
	return nil
}
