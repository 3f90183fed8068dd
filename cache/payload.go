package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// OpenPayload returns the file's payload as a stream. It ends with io.EOF
// only when every byte was verified against a digest of the artifact;
// bytes may have been handed out before that.
func (f *File) OpenPayload(ctx context.Context) (io.ReadCloser, error) {
	return &payloadReader{ctx: ctx, entry: f.entry, part: -1}, nil
}

type payloadReader struct {
	ctx   context.Context
	entry *entry
	off   int64
	part  int       // the part that off is in
	hash  hash.Hash // over the part so far; nil where its pieces are verified
	err   error
}

func (r *payloadReader) Close() error { return nil }

func (r *payloadReader) Read(p []byte) (int, error) {
	if r.err == nil && len(p) > 0 {
		var n int
		if n, r.err = r.read(p); n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

func (r *payloadReader) read(p []byte) (int, error) {
	e := r.entry
	if err := r.enterPart(); err != nil {
		return 0, err
	}
	if r.off == e.file.PayloadSize() {
		return 0, io.EOF
	}
	// One piece at a time keeps to what is whole; fetching runs ahead.
	i := e.grid.at(r.off)
	start, n := e.grid.extent(i)
	p = p[:min(int64(len(p)), start+n-r.off)]
	// Its readers go straight on, so that the payload serves as the file.
	unkept, err := e.ensure(r.ctx, look{off: r.off, n: int64(len(p)), from: r.off, to: r.off + int64(len(p))})
	if err != nil {
		return 0, err
	}
	if data, ok := unkept[i]; ok {
		copy(p, data[r.off-start:])
	} else if err := e.loadPayload(r.off, p); err != nil {
		return 0, noEOF(err)
	}
	if r.hash != nil {
		r.hash.Write(p)
	}
	r.off += int64(len(p))
	return len(p), nil
}

// enterPart ends the part that was read to its end and begins the next.
func (r *payloadReader) enterPart() error {
	e := r.entry
	for r.part < 0 || r.part < len(e.file.Parts) && r.off == e.file.Parts[r.part].End() {
		if r.part >= 0 {
			if err := r.endPart(); err != nil {
				return err
			}
		}
		r.part++
		r.hash = nil
		if r.part == len(e.file.Parts) || e.partVerified(r.part) {
			continue
		}
		e.forgetUnseen(r.part)
		if e.hashedOnRead(r.part) {
			r.hash = sha256.New()
		}
	}
	return nil
}

// hashedOnRead says that a part's stored bytes are its payload, with no
// digest for its pieces.
func (e *entry) hashedOnRead(part int) bool {
	_, summed := e.grid.sum(e.grid.first[part])
	return e.file.Parts[part].Encoding == layout.Raw && !e.grid.whole(part) && !summed
}

// endPart makes sure that all of the part was verified.
func (r *payloadReader) endPart() error {
	e := r.entry
	if r.hash != nil {
		if "sha256:"+hex.EncodeToString(r.hash.Sum(nil)) != e.file.Parts[r.part].Digest {
			return e.drop(r.part, nil, "whole")
		}
		e.vouch(r.part)
		return nil
	}
	return e.streamVerified(r.ctx, r.part)
}

// streamVerified waits for the stream that fetches a part to compare its
// digest, which it does after its last piece.
func (e *entry) streamVerified(ctx context.Context, part int) error {
	for {
		e.mu.Lock()
		streaming, vouched := e.streams[part], e.vouched[part]
		e.mu.Unlock()
		if e.grid.whole(part) || vouched || e.partVerified(part) {
			return nil
		}
		if !streaming {
			return e.wrong(part, "never seen whole")
		}
		select {
		case <-time.After(verifyPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
