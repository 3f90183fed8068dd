package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// fromArtifact returns the source of a push that converts an artifact. It
// can be opened any number of times.
func (o *PushOptions) fromArtifact() *source {
	return &source{again: true, open: func(ctx context.Context) (*exportReader, func() error, error) {
		r, closeAll, err := exportOf(ctx, o.Artifact, o.Payloads)
		return r, closeAll, err
	}}
}

// exportOf presents an artifact as an export. It opens payloads when they
// are first read; the returned function closes them.
func exportOf(ctx context.Context, a *Artifact, src Payloads) (*exportReader, func() error, error) {
	if a.Kind != manifest.KindSnapshot {
		return nil, nil, &kindError{a.Kind}
	}
	r := newExportReader(eofReader{})
	r.src.eof = true
	r.ahead = true
	r.text = a.Envelope
	var err error
	if r.odd, err = r.envelope.decode(a.Envelope); err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w: %w", EnvelopeName, layout.ErrContent, err)
	}
	r.names[EnvelopeName] = true
	p := &payloadSequence{ctx: ctx, src: src}
	for _, f := range a.Files {
		r.names[f.Name] = true
		e := &exportEntry{
			name: f.Name, size: f.PayloadSize(), mode: int64(f.Mode),
			mapText: f.MapText, records: f.Records, body: &lazyPayload{seq: p, file: f},
		}
		if f.MapText != "" {
			e.sparseSize = f.Size()
		}
		r.list = append(r.list, e)
		r.sizes = append(r.sizes, e.size)
	}
	return r, p.close, nil
}

// eofReader is an empty input.
type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// payloadSequence opens payloads one after another, and closes the previous
// one.
type payloadSequence struct {
	ctx  context.Context
	src  Payloads
	open io.ReadCloser // nil if none is open
}

func (s *payloadSequence) next(f *layout.File) (err error) {
	if err := s.close(); err != nil {
		return err
	}
	s.open, err = s.src.OpenPayload(s.ctx, f)
	return err
}

func (s *payloadSequence) close() error {
	if s.open == nil {
		return nil
	}
	err := s.open.Close()
	s.open = nil
	return err
}

// lazyPayload is the payload of a file, opened at the first read.
type lazyPayload struct {
	seq  *payloadSequence
	file *layout.File
	r    io.ReadCloser
}

func (l *lazyPayload) Read(p []byte) (int, error) {
	if l.r == nil {
		if err := l.seq.next(l.file); err != nil {
			return 0, asInput(err)
		}
		l.r = l.seq.open
	}
	n, err := l.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = asInput(err)
	}
	return n, err
}
