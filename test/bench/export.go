package main

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

const smallConfig = `{"vm":"bench"}` + "\n"

// export is a tar that is being written as cocoon exports a snapshot.
type export struct {
	f   *os.File
	buf *bufio.Writer
	tar *tar.Writer
}

// newExport begins a tar with a snapshot's small files.
func newExport(path string) (*export, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	buf := bufio.NewWriterSize(f, 1<<20)
	e := &export{f, buf, tar.NewWriter(buf)}
	for _, small := range [][2]string{{"snapshot.json", pushedEnvelope}, {"config.json", smallConfig}} {
		err := e.tar.WriteHeader(&tar.Header{Name: small[0], Mode: 0o644, Size: int64(len(small[1]))})
		if err == nil {
			_, err = io.WriteString(e.tar, small[1])
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return e, nil
}

// add writes a file whose payload is read from r.
func (e *export) add(title string, m *sparse.Map, r io.Reader) error {
	hdr := &tar.Header{Name: title, Mode: 0o600, Size: m.DataSize()}
	if m.DataSize() < m.Size() {
		hdr.PAXRecords = map[string]string{
			"COCOON.sparse.map": m.Text(), "COCOON.sparse.size": strconv.FormatInt(m.Size(), 10),
		}
	}
	if err := e.tar.WriteHeader(hdr); err != nil {
		return err
	}
	if _, err := io.CopyN(e.tar, r, m.DataSize()); err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	return nil
}

func (e *export) close() error { return errors.Join(e.tar.Close(), e.buf.Flush(), e.f.Close()) }

// writeExport writes an export of one file, whose payload is read from r.
func writeExport(path, title string, m *sparse.Map, r io.Reader) error {
	e, err := newExport(path)
	if err != nil {
		return err
	}
	return errors.Join(e.add(title, m, r), e.close())
}

// addFile adds a file with the holes that it has.
func (e *export) addFile(title, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := holesOf(f)
	if err != nil {
		return err
	}
	var parts []io.Reader
	for _, s := range m.Segments() {
		parts = append(parts, io.NewSectionReader(f, s.Offset, s.Length))
	}
	return e.add(title, m, io.MultiReader(parts...))
}

// holesOf asks the file system where a file has data.
func holesOf(f *os.File) (*sparse.Map, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var segs []sparse.Segment
	for at := int64(0); at < st.Size(); {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, err
		}
		if at, err = f.Seek(from, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		segs = append(segs, sparse.Segment{Offset: from, Length: at - from})
	}
	return sparse.New(segs, st.Size())
}
