package snapshot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

const (
	// maxPAXMap is the longest map in a tar's header, in bytes of text, as
	// in cocoon: Go's tar bounds a header at 1 MiB.
	maxPAXMap = 800 << 10

	tarBlock  = 512
	tarBuffer = 256 << 10
)

// TarOptions configure WriteTar.
type TarOptions struct {
	LocalName   string            // config.name of the envelope; "" to keep it
	Description string            // config.description of the envelope; "" to keep it
	Progress    func(string)      // receives a line for each file; may be nil
	OnBytes     func(delta int64) // receives the number of bytes of data written since the last call; may be nil
}

// WriteTar writes the snapshot as the tar that cocoon imports: the envelope,
// then each file. A sparse file is written as its data with the map in the
// entry's header, or in full if the map is too long for a header.
//
// An entry's last byte is written only after src has verified the whole
// payload. After a failure, cocoon can see that the tar is not complete: an
// entry lacks its last byte, or, between entries, a block follows that is no
// header. The caller then closes w.
func (a *Artifact) WriteTar(ctx context.Context, w io.Writer, src Payloads, opts TarOptions) error {
	if a.Kind != manifest.KindSnapshot {
		return &kindError{a.Kind}
	}
	text, err := editEnvelope(a.Envelope, opts.LocalName, opts.Description)
	if err != nil {
		return fmt.Errorf("%w: %w", layout.ErrContent, err)
	}
	out := &output{w: w}
	buf := bufio.NewWriterSize(out, tarBuffer)
	t := &tarWriter{buf: buf, tar: tar.NewWriter(buf), src: src, opts: &opts, time: tarTime(a.Created)}
	if err := t.write(ctx, text, a.Files); err != nil {
		if out.err == nil {
			t.abort()
		}
		return err
	}
	return nil
}

// output records whether writing failed.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		err = &outputError{err}
		o.err = err
	}
	return n, err
}

// outputError is an error of the tar's receiver, not of the artifact.
type outputError struct{ err error }

func (e *outputError) Error() string { return "write tar: " + e.err.Error() }
func (e *outputError) Unwrap() error { return e.err }

// tarWriter writes one tar.
type tarWriter struct {
	buf  *bufio.Writer
	tar  *tar.Writer
	src  Payloads
	opts *TarOptions
	time time.Time
	open bool // an entry has begun and still lacks bytes
}

func (t *tarWriter) write(ctx context.Context, envelope []byte, files []*layout.File) error {
	hdr := &tar.Header{Name: EnvelopeName, Size: int64(len(envelope)), Mode: 0o644, ModTime: t.time}
	if err := t.tar.WriteHeader(hdr); err != nil {
		return fmt.Errorf("write tar header %s: %w", EnvelopeName, err)
	}
	if _, err := t.tar.Write(envelope); err != nil {
		return fmt.Errorf("write tar body %s: %w", EnvelopeName, err)
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if t.opts.Progress != nil {
			t.opts.Progress(fmt.Sprintf("  %s (%d bytes)", f.Name, f.StoredSize()))
		}
		if err := t.file(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	if err := t.tar.Close(); err != nil {
		return fmt.Errorf("close tar: %w", err)
	}
	return t.buf.Flush()
}

// file writes one entry.
func (t *tarWriter) file(ctx context.Context, f *layout.File) error {
	payload, err := t.src.OpenPayload(ctx, f)
	if err != nil {
		return err
	}
	defer payload.Close()
	hdr := &tar.Header{Name: f.Name, Size: f.PayloadSize(), Mode: int64(f.Mode), ModTime: t.time}
	hdr.PAXRecords = maps.Clone(f.Records)
	text := mapText(f)
	full := len(text) > maxPAXMap
	switch {
	case full:
		hdr.Size = f.Size()
	case text != "":
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[paxSparseMap] = text
		hdr.PAXRecords[paxSparseSize] = strconv.FormatInt(f.Size(), 10)
	}
	if err := t.tar.WriteHeader(hdr); err != nil {
		return fmt.Errorf("write tar header: %w", err)
	}
	t.open = hdr.Size > 0
	body := &heldBack{w: t.tar, onBytes: t.opts.OnBytes}
	if full {
		err = copyFull(ctx, body, payload, f)
	} else {
		err = copyAll(ctx, body, payload, f.PayloadSize())
	}
	if err != nil {
		return err
	}
	if err := verified(payload, f.PayloadSize()); err != nil {
		return err
	}
	if err := body.release(); err != nil {
		return err
	}
	t.open = false
	return t.tar.Flush() // pads the entry
}

// mapText returns the file's map for a header, in a form that all readers
// parse alike, which the artifact's own text may not be. Readers of JSON
// differ on repeated keys and on keys in another case, and a map that cocoon
// read differently would make another file.
func mapText(f *layout.File) string {
	if f.MapText == "" || f.MapText == "null" {
		return f.MapText
	}
	return f.Map.Text()
}

// copyAll copies the payload, which must have n bytes.
func copyAll(ctx context.Context, w io.Writer, payload io.Reader, n int64) error {
	from, ok := payload.(io.WriterTo)
	if !ok {
		return copyExactly(ctx, w, payload, n)
	}
	to := &exactly{ctx, w, n}
	if _, err := from.WriteTo(to); err != nil {
		return err
	}
	if to.left > 0 {
		return wrong("the payload ends %d bytes early", to.left)
	}
	return nil
}

// exactly accepts left bytes and no more.
type exactly struct {
	ctx  context.Context
	w    io.Writer
	left int64
}

func (e *exactly) Write(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	if e.left -= int64(len(p)); e.left < 0 {
		return 0, wrong("the payload is %d bytes too long", -e.left)
	}
	return e.w.Write(p)
}

// copyExactly copies the next n bytes of the payload.
func copyExactly(ctx context.Context, w io.Writer, payload io.Reader, n int64) error {
	buf := make([]byte, min(n, tarBuffer))
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		got, err := payload.Read(buf[:min(n, int64(len(buf)))])
		if got > 0 {
			if _, err := w.Write(buf[:got]); err != nil {
				return err
			}
			n -= int64(got)
		}
		if err == io.EOF && n > 0 {
			return wrong("the payload ends %d bytes early", n)
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// copyFull writes the file with its holes as zeros.
func copyFull(ctx context.Context, w *heldBack, payload io.Reader, f *layout.File) error {
	var at int64
	for _, s := range f.Map.Segments() {
		if err := writeZeros(ctx, w, s.Offset-at); err != nil {
			return err
		}
		if err := copyExactly(ctx, w, payload, s.Length); err != nil {
			return err
		}
		at = s.Offset + s.Length
	}
	return writeZeros(ctx, w, f.Size()-at)
}

var zeros [64 << 10]byte

// writeZeros writes n bytes of a hole, which are not counted.
func writeZeros(ctx context.Context, w *heldBack, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		k := min(n, int64(len(zeros)))
		if err := w.hold(zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// verified reads the end of payload, which confirms that all of it was
// right.
func verified(payload io.Reader, size int64) error {
	var more [1]byte
	switch n, err := io.ReadFull(payload, more[:]); {
	case n > 0:
		return wrong("the payload has more than %d bytes", size)
	case err != io.EOF:
		return err
	}
	return nil
}

// heldBack withholds the last byte written to it, and counts.
type heldBack struct {
	w       io.Writer
	last    [1]byte
	held    bool
	onBytes func(int64)
}

func (h *heldBack) Write(p []byte) (int, error) {
	if err := h.hold(p); err != nil {
		return 0, err
	}
	if h.onBytes != nil {
		h.onBytes(int64(len(p)))
	}
	return len(p), nil
}

// hold writes what was withheld and p, except the last byte.
func (h *heldBack) hold(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := h.release(); err != nil {
		return err
	}
	end := len(p) - 1
	if _, err := h.w.Write(p[:end]); err != nil {
		return err
	}
	h.last[0], h.held = p[end], true
	return nil
}

// release writes the byte that was withheld.
func (h *heldBack) release() error {
	if !h.held {
		return nil
	}
	h.held = false
	_, err := h.w.Write(h.last[:])
	return err
}

// abort makes the tar recognizably incomplete. Inside an entry it is that
// already, as its body is too short; more bytes might fill up body and
// padding and make it look complete. Between entries a reader must find
// something that is no header.
func (t *tarWriter) abort() {
	if !t.open {
		if t.tar.Flush() != nil {
			return
		}
		if _, err := t.buf.Write(bytes.Repeat([]byte{0xFF}, tarBlock)); err != nil {
			return
		}
	}
	t.buf.Flush() //nolint:errcheck // the error that led here is what is reported
}

// tarTime returns the time of all entries: when the artifact was made.
func tarTime(created time.Time) time.Time {
	if created.Unix() < 0 {
		return time.Unix(0, 0)
	}
	return time.Unix(created.Unix(), 0)
}

// isOutput reports whether err came from the tar's receiver.
func isOutput(err error) bool {
	var e *outputError
	return errors.As(err, &e)
}
