package snapshot

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// maxTrailer bounds the bytes read after the end of a tar: tar pads to 10
// KiB, or to the block size it is told.
const maxTrailer = 16 << 20

var errNoEnvelope = errors.New("snapshot.json not found in export stream")

// exportEntry is one file of an export.
type exportEntry struct {
	name       string
	size       int64 // of the payload
	mode       int64 // permission bits
	mapText    string
	sparseSize int64
	records    map[string]string
	body       io.Reader         // the payload
	again      *io.SectionReader // the payload, if it can be read twice

	// Bytes of the payload that a stream has read, to be compared with a
	// second export.
	read int64
	sum  hash.Hash
}

// exportReader reads an export tar, checks each entry, and keeps the
// envelope.
type exportReader struct {
	text     []byte // snapshot.json
	envelope envelope
	odd      []string // keys in it whose values have an unexpected type

	src   *position // the input itself
	in    *position // the tar: src, or its decompressed form
	tar   *tar.Reader
	end   int64 // end of the last entry, including padding
	names map[string]bool

	window int64  // bound of a zstd decoder's window, in bytes
	held   int64  // bytes that the decoder's window takes
	commit string // commit in the first header of a git archive, or ""

	ahead bool           // all headers were read first: list and sizes are complete
	list  []*exportEntry // files not yet returned
	sizes []int64        // of all files
}

// openExport opens a tar, plain or compressed. It reads all headers first if
// the tar is plain and in can seek. window bounds that of a zstd decoder, in
// bytes.
func openExport(in io.Reader, window int64) (*exportReader, error) {
	at, canAt := in.(io.ReaderAt)
	if s, ok := in.(io.Seeker); ok && canAt {
		if start, err := s.Seek(0, io.SeekCurrent); err == nil {
			head := make([]byte, headSize)
			n, _ := at.ReadAt(head, start) // the error shows up below
			if packingOf(head[:n]) == plain {
				return readAhead(in, s, at, start)
			}
		}
	}
	src := &position{r: in}
	buf := bufio.NewReaderSize(src, tarBuffer)
	head, err := buf.Peek(headSize)
	if err != nil && err != io.EOF {
		return newExportReader(buf), nil // its first read fails
	}
	tar, err := unpack(buf, head, window)
	if err != nil {
		return nil, err
	}
	r := newExportReader(tar)
	if r.window = window; packingOf(head) == zstds {
		r.held = min(zstdframe.Window(head), window)
	}
	if tar != io.Reader(buf) {
		r.src = src
	}
	return r, nil
}

func newExportReader(in io.Reader) *exportReader {
	r := &exportReader{in: &position{r: in}, names: map[string]bool{}}
	r.src = r.in
	r.tar = tar.NewReader(r.in)
	return r
}

// readAhead lists the files of a tar that can seek: it reads headers and
// skips bodies.
func readAhead(in io.Reader, s io.Seeker, at io.ReaderAt, start int64) (*exportReader, error) {
	r := newExportReader(in)
	r.tar = tar.NewReader(&seekPosition{position: r.in, s: s, start: start})
	for {
		e, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		body := io.NewSectionReader(at, start+r.in.n, e.size)
		e.body, e.again = body, body
		r.list = append(r.list, e)
		r.sizes = append(r.sizes, e.size)
	}
	r.ahead = true
	return r, nil
}

// next returns the next file; the caller must read its body before the next
// call. It returns io.EOF only after the end marker of the tar.
func (r *exportReader) next() (*exportEntry, error) {
	if r.ahead {
		if len(r.list) == 0 {
			return nil, io.EOF
		}
		e := r.list[0]
		r.list = r.list[1:]
		return e, nil
	}
	for {
		hdr, err := r.tar.Next()
		if err == io.EOF {
			return nil, r.checkEnd()
		}
		if err != nil {
			return nil, r.readError(err)
		}
		r.end = r.in.n + (hdr.Size+tarBlock-1)/tarBlock*tarBlock
		e, err := r.entry(hdr)
		if err != nil {
			return nil, r.gitError(err)
		}
		if e != nil {
			return e, nil
		}
	}
}

// readError distinguishes a malformed tar from an input that breaks.
func (r *exportReader) readError(err error) error {
	if r.src.err == nil {
		err = fmt.Errorf("%w: %w", layout.ErrContent, windowError(err, r.window))
	}
	return &inputError{fmt.Errorf("read tar: %w", err)}
}

// entryBody reads the current entry's payload.
type entryBody struct{ r *exportReader }

func (b *entryBody) Read(p []byte) (int, error) {
	n, err := b.r.tar.Read(p)
	if err != nil && err != io.EOF {
		err = b.r.readError(err)
	}
	return n, err
}

// checkEnd returns io.EOF if a block of zeros after the last entry marks the
// end of the tar. To archive/tar, a tar that was cut between entries, or
// between the headers of one, looks complete.
func (r *exportReader) checkEnd() error {
	if r.in.n < r.end+tarBlock || r.in.last != [tarBlock]byte{} {
		return &inputError{wrong("the tar is cut: it ends after %d bytes without an end marker", r.in.n)}
	}
	// The rest is padding. Reading it lets the writer end, and gzip verify
	// its checksum.
	if _, err := io.Copy(io.Discard, io.LimitReader(r.in, maxTrailer)); err != nil {
		return r.readError(err)
	}
	return io.EOF
}

// entry handles one header: it stores the envelope, returns a file, and
// skips a directory.
func (r *exportReader) entry(hdr *tar.Header) (*exportEntry, error) {
	if r.passGit(hdr) {
		return nil, nil
	}
	name := strings.TrimPrefix(hdr.Name, "./")
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, &inputError{wrong("entry %q is sparse in a way that cocoon does not write", name)}
		}
	}
	switch {
	case hdr.Typeflag == tar.TypeDir:
		return nil, nil
	case hdr.Typeflag != tar.TypeReg:
		return nil, &inputError{wrong("entry %q is no regular file", name)}
	case r.names[name]:
		return nil, &inputError{wrong("two entries are called %q", name)}
	}
	r.names[name] = true
	if name == EnvelopeName {
		return nil, r.readEnvelope(hdr.Size)
	}
	e := &exportEntry{name: name, size: hdr.Size, mode: hdr.Mode & 0o777, body: &entryBody{r}}
	if err := e.check(hdr); err != nil {
		return nil, &inputError{fmt.Errorf("entry %q: %w", name, err)}
	}
	return e, nil
}

// check refuses a file that could be pushed and then never be read.
func (e *exportEntry) check(hdr *tar.Header) error {
	if err := checkName(e.name); err != nil {
		return err
	}
	if e.size > sparse.MaxSize {
		return wrong("size %d", e.size)
	}
	if hdr.Mode < 0 {
		return wrong("mode %d", hdr.Mode)
	}
	e.records = recordsOf(hdr.PAXRecords)
	if err := checkRecords(e.records); err != nil {
		return err
	}
	var ok bool
	if e.mapText, ok = hdr.PAXRecords[paxSparseMap]; !ok {
		return nil
	}
	size, err := strconv.ParseInt(hdr.PAXRecords[paxSparseSize], 10, 64)
	if err != nil || size < 0 {
		return wrong("record %s is %q", paxSparseSize, hdr.PAXRecords[paxSparseSize])
	}
	e.sparseSize = size
	m, err := sparse.Parse(e.mapText, size)
	if err != nil {
		return fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	if m.DataSize() != e.size {
		return wrong("the sparse map has %d bytes of data, the entry %d", m.DataSize(), e.size)
	}
	return nil
}

// readEnvelope parses and keeps the envelope's text.
func (r *exportReader) readEnvelope(size int64) error {
	if size > MaxEnvelope {
		return &inputError{wrong("%s has %d bytes, at most %d are kept", EnvelopeName, size, MaxEnvelope)}
	}
	text, err := io.ReadAll(&entryBody{r})
	if err != nil {
		return err
	}
	if _, err = findSpans(text); err == nil {
		r.odd, err = r.envelope.decode(text)
	}
	if err != nil {
		return &inputError{fmt.Errorf("parse %s: %w: %w", EnvelopeName, layout.ErrContent, err)}
	}
	r.text = text
	return nil
}

// complete checks, after the last file, that nothing is missing.
func (r *exportReader) complete() error {
	if r.text == nil {
		return r.gitError(&inputError{fmt.Errorf("%w: %w", layout.ErrContent, errNoEnvelope)})
	}
	if len(r.names) == 1 {
		return &inputError{wrong("the export has no files")}
	}
	for _, name := range r.envelope.Files {
		if !r.names[name] {
			return &inputError{wrong("%s names a file %q that is not in the export", EnvelopeName, name)}
		}
	}
	return nil
}

// position counts the bytes read, and keeps the last ones.
type position struct {
	r    io.Reader
	n    int64
	last [tarBlock]byte // the last bytes before n
	eof  bool           // r has ended
	err  error          // error of r, other than io.EOF
}

func (p *position) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n += int64(n)
	if n >= tarBlock {
		copy(p.last[:], b[n-tarBlock:n])
	} else {
		copy(p.last[:], p.last[n:])
		copy(p.last[tarBlock-n:], b[:n])
	}
	p.eof = p.eof || err == io.EOF
	if err != nil && err != io.EOF {
		p.err = err
	}
	return n, err
}

// seekPosition is a position that skips bodies by seeking.
type seekPosition struct {
	*position
	s     io.Seeker
	start int64
}

func (p *seekPosition) Seek(off int64, whence int) (int64, error) {
	if whence == io.SeekStart {
		off += p.start
	}
	at, err := p.s.Seek(off, whence)
	if err != nil {
		p.err = err
		return 0, err
	}
	p.n = at - p.start
	return p.n, nil
}
