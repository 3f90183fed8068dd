package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/internal/digests"
)

// pushFloorRow measures what no push can do without on this machine: the
// registry taking bytes that are ready in memory, and zstd on all
// processors, each beside the reference that pushRows have.
func pushFloorRow(ctx context.Context, b *bench) ([]*line, error) {
	file, err := b.exportTar("first", nil)
	if err != nil {
		return nil, err
	}
	var blobs [][]byte
	var names []string
	for _, d := range pushedSets {
		data := make([]byte, d.m.DataSize())
		d.fill(data, 0)
		blobs, names = append(blobs, data), append(names, digests.Of(data))
	}
	var frames [][]byte
	forms := []struct {
		work string
		run  func() error
	}{
		{"sending what v1 has, in bodies of 16 MiB, and nothing else", func() error { return b.sendBlobs(ctx, 1, blobs, names) }},
		{"the same, both files at a time", func() error { return b.sendBlobs(ctx, 2, blobs, names) }},
		{"the same, both files at a time, and hashed as v1 wants it", func() error { return b.sendHashed(ctx, blobs, names) }},
		{"zstd 3 in chunks of 4 MiB on all processors, and nothing else", func() (err error) {
			frames, err = encodeAll(ctx, blobs)
			return err
		}},
		{"hashing and sending these chunks, 8 at a time, and nothing else", func() error { return b.sendFrames(ctx, frames) }},
	}
	var runs []func() (float64, error)
	for _, f := range forms {
		runs = append(runs, func() (float64, error) {
			began := time.Now()
			err := f.run()
			return time.Since(began).Seconds(), err
		})
	}
	if frames, err = encodeAll(ctx, blobs); err != nil {
		return nil, err
	}
	if err := b.sendFrames(ctx, frames); err != nil { // the registry keeps from now on what it gets
		return nil, err
	}
	times, err := b.rounds(ctx, append(runs, func() (float64, error) { return b.pushByReference(ctx, file) })...)
	if err != nil {
		return nil, err
	}
	var lines []*line
	for i, f := range forms {
		lines = append(lines, timed(f.work, times[i], spooled, times[len(forms)], no, 0))
	}
	return lines, nil
}

// sendBlobs uploads blobs, so many at a time.
func (b *bench) sendBlobs(ctx context.Context, atATime int, blobs [][]byte, digests []string) error {
	repository := b.repository()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atATime)
	for i, data := range blobs {
		g.Go(func() error { return b.sendPatches(ctx, repository, data, digests[i]) })
	}
	return g.Wait()
}

// sendHashed uploads all blobs at a time, and makes the digests of v1
// meanwhile.
func (b *bench) sendHashed(ctx context.Context, blobs [][]byte, digests []string) error {
	hashed := make(chan struct{})
	go func() {
		defer close(hashed)
		hashAll(blobs)
	}()
	err := b.sendBlobs(ctx, len(blobs), blobs, digests)
	<-hashed
	return err
}

// sendPatches uploads a blob as epochfs does where the digest comes last.
func (b *bench) sendPatches(ctx context.Context, repository string, data []byte, digest string) error {
	const most = 16 << 20
	to, err := session(ctx, b.registry.addr, repository)
	if err != nil {
		return err
	}
	for off := 0; off < len(data); off += most {
		p := data[off:min(off+most, len(data))]
		resp, err := do(ctx, http.MethodPatch, to.String(), io.NopCloser(bytes.NewReader(p)), int64(len(p)))
		if err != nil {
			return err
		}
		if to, err = resp.Location(); err != nil {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
	}
	return finishSession(ctx, to, digest, bytes.NewReader(nil), 0)
}

// hashAll makes the digests of v1: of whole blobs, and of their pieces.
func hashAll(blobs [][]byte) {
	const piece = 256 << 10
	for _, data := range blobs {
		whole := sha256.New()
		for off := 0; off < len(data); off += piece {
			p := data[off:min(off+piece, len(data))]
			whole.Write(p)
			sha256.Sum256(p)
		}
	}
}

// sendFrames uploads blobs, each in one request.
func (b *bench) sendFrames(ctx context.Context, frames [][]byte) error {
	repository := b.repository()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, data := range frames {
		g.Go(func() error {
			to, err := session(ctx, b.registry.addr, repository)
			if err != nil {
				return err
			}
			return finishSession(ctx, to, digests.Of(data), bytes.NewReader(data), int64(len(data)))
		})
	}
	return g.Wait()
}

// encodeAll makes zstd frames of chunks of the blobs.
func encodeAll(ctx context.Context, blobs [][]byte) ([][]byte, error) {
	const size = 4 << 20
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	var chunks [][]byte
	for _, data := range blobs {
		for off := 0; off < len(data); off += size {
			chunks = append(chunks, data[off:min(off+size, len(data))])
		}
	}
	frames := make([][]byte, len(chunks))
	return frames, parallel(ctx, len(chunks), func(_ context.Context, i int) error {
		frames[i] = enc.EncodeAll(chunks[i], make([]byte, 0, len(chunks[i])/2))
		return nil
	})
}
